"""Subnormal numbers, with which many CPUs compute very slowly, taken as zero on this thread."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

# Where the C library's fenv_t keeps the control word, and the bits that flush subnormal results
# and operands: MXCSR's FTZ and DAZ (Intel SDM, volume 1, 10.2.3), FPCR's FZ (Arm ARM, C5.2.8).
_CONTROL = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
_LARGEST_ENVIRONMENT = 64
_LIBRARY = ctypes.CDLL("libm.so.6")  # glibc's


@contextlib.contextmanager
def subnormals_flushed(flush: bool) -> Iterator[None]:
    """Take subnormal numbers as zero, or not, on this thread; it is as it was afterwards.

    torch can set this too, and takes more than a second to import. On other processors than x86-64
    and 64-bit Arm nothing is done.
    """
    if platform.machine() not in _CONTROL:
        yield
        return
    offset, bits = _CONTROL[platform.machine()]
    before = (ctypes.c_byte * _LARGEST_ENVIRONMENT)()
    _LIBRARY.fegetenv(before)
    inside = type(before).from_buffer_copy(before)
    word = ctypes.c_uint32.from_buffer(inside, offset)
    word.value = word.value | bits if flush else word.value & ~bits
    _LIBRARY.fesetenv(inside)
    try:
        yield
    finally:
        _LIBRARY.fesetenv(before)
