"""A second soname for a loaded library, so that a later `dlopen` of that name finds it.

The wheel of TensorRT for RTX ships `libtensorrt_rtx.so.1` alone, while its ONNX parser opens
`libtensorrt_rtx.so` when it adds a plugin and aborts the process when there is none. The search
path is read once, when a process starts, so setting LD_LIBRARY_PATH afterwards is too late. What
glibc does look at is the DT_SONAME of the libraries already loaded (dlopen(3), `_dl_map_object`).
So we load a library of a few hundred bytes whose soname is the missing name and whose only content
is a dependency on the real one: symbols looked up through its handle are found in that dependency.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import tempfile
from pathlib import Path

# ELF constants: System V ABI, chapters "Object Files" and "Program Loading and Dynamic Linking".
_ET_DYN = 3
_MACHINES = {"x86_64": 62, "aarch64": 183}
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_PF_R, _PF_W = 4, 2
_DT_NULL, _DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = (
    0,
    1,
    4,
    5,
    6,
    10,
    11,
    14,
)
_EHDR, _PHDR, _SYM = 64, 56, 24
_PAGE = 0x10000  # the largest page size of either architecture


def can_open(soname: str) -> bool:
    """Return whether `dlopen(soname)` succeeds in this process now."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def alias_library(soname: str, target: str) -> None:
    """Make `dlopen(soname)` return the loaded library whose own soname is `target`.

    Does nothing when `soname` can be opened already.

    Args:
        soname: The name that somebody will open, such as `libtensorrt_rtx.so`.
        target: The soname of a library loaded in this process, such as `libtensorrt_rtx.so.1`.

    Raises:
        OSError: The name still cannot be opened: not glibc on Linux, or `target` is not loaded.
    """
    if can_open(soname):
        return
    if not sys.platform.startswith("linux"):
        raise OSError(f"{soname} cannot be aliased on {sys.platform}")
    with tempfile.TemporaryDirectory(prefix="bilateral-soname-") as folder:
        path = Path(folder) / soname
        path.write_bytes(shared_object(soname, target))
        # The mapping outlives the file; glibc keeps the object until the process ends.
        ctypes.CDLL(str(path), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
    if not can_open(soname):
        raise OSError(f"{soname} cannot be opened")


def shared_object(soname: str, needed: str, machine: str | None = None) -> bytes:
    """Return an empty ELF64 shared library named `soname` that depends on `needed`.

    Args:
        soname: Its DT_SONAME.
        needed: Its one DT_NEEDED.
        machine: `x86_64` or `aarch64`; this machine's when None.

    Raises:
        OSError: The machine is another.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"no ELF machine number known for {machine}")
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    soname_at, needed_at = 1, 2 + len(soname)
    symbols = bytes(_SYM)  # the null symbol
    hash_table = struct.pack("<4I", 1, 1, 0, 0)  # one bucket, one chain entry, both empty

    symbols_at = _EHDR + 4 * _PHDR
    hash_at = symbols_at + len(symbols)
    strings_at = hash_at + len(hash_table)
    dynamic_at = -(-(strings_at + len(strings)) // 16) * 16
    # The dynamic section lies in a page of its own, which the loader may write to.
    dynamic_address = dynamic_at + _PAGE
    dynamic = b"".join(
        struct.pack("<qQ", tag, value)
        for tag, value in (
            (_DT_NEEDED, needed_at),
            (_DT_SONAME, soname_at),
            (_DT_HASH, hash_at),
            (_DT_STRTAB, strings_at),
            (_DT_SYMTAB, symbols_at),
            (_DT_STRSZ, len(strings)),
            (_DT_SYMENT, _SYM),
            (_DT_NULL, 0),
        )
    )

    identification = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bit, little endian, version 1
    header = identification + struct.pack(
        "<HHIQQQIHHHHHH", _ET_DYN, _MACHINES[machine], 1, 0, _EHDR, 0, 0, _EHDR, _PHDR, 4, 64, 0, 0
    )
    end = dynamic_at + len(dynamic)
    segments = (
        _segment(_PT_LOAD, _PF_R, 0, 0, dynamic_at, _PAGE),
        _segment(_PT_LOAD, _PF_R | _PF_W, dynamic_at, dynamic_address, end - dynamic_at, _PAGE),
        _segment(_PT_DYNAMIC, _PF_R | _PF_W, dynamic_at, dynamic_address, end - dynamic_at, 8),
        # Without this one the loader would make the stack executable.
        _segment(_PT_GNU_STACK, _PF_R | _PF_W, 0, 0, 0, 16),
    )
    body = header + b"".join(segments) + symbols + hash_table + strings
    return body.ljust(dynamic_at, b"\0") + dynamic


def _segment(kind: int, flags: int, offset: int, address: int, size: int, align: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, size, align)
