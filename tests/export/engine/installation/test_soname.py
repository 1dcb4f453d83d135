"""Each case runs in a process of its own: what is loaded cannot be unloaded."""

from __future__ import annotations

import ctypes.util
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bilateral_export.engine.installation.soname import shared_object

EXPORT = Path(__file__).parents[4] / "export"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that has no LD_LIBRARY_PATH."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(EXPORT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_loaded_library_can_be_opened_by_a_second_name() -> None:
    name = ctypes.util.find_library("z")
    if name is None:
        pytest.skip("no zlib on this machine to try it with")
    result = run_python(f"""
import ctypes
from bilateral_export.engine.installation.soname import alias_library, can_open
real = ctypes.CDLL({name!r})
assert not can_open("libbilateral-alias.so")
alias_library("libbilateral-alias.so", {name!r})
alias = ctypes.CDLL("libbilateral-alias.so")
address = lambda library: ctypes.cast(library.zlibVersion, ctypes.c_void_p).value
assert address(alias) == address(real)
alias_library("libbilateral-alias.so", "no-such-library.so")  # already there: nothing to do
""")
    assert result.returncode == 0, result.stderr


def test_a_target_that_is_not_there_is_an_error_not_a_crash() -> None:
    result = run_python("""
from bilateral_export.engine.installation.soname import alias_library
try:
    alias_library("libbilateral-alias.so", "no-such-library.so")
except OSError as error:
    print("refused:", error)
""")
    assert "refused: no-such-library.so" in result.stdout, result.stderr


def test_the_process_keeps_its_stack_protected() -> None:
    """A library without PT_GNU_STACK makes the loader turn the stack executable."""
    result = run_python("""
import ctypes, ctypes.util
from bilateral_export.engine.installation.soname import alias_library
alias_library("libbilateral-alias.so", "libc.so.6")
print([line for line in open("/proc/self/maps") if "[stack]" in line][0].split()[1])
""")
    assert result.stdout.strip() == "rw-p", result.stderr


def test_an_unknown_machine_is_refused() -> None:
    assert shared_object("a.so", "b.so", "aarch64")[:4] == b"\x7fELF"
    with pytest.raises(OSError, match="riscv64"):
        shared_object("a.so", "b.so", "riscv64")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the wheel is for x86_64")
def test_the_parser_of_tensorrt_for_rtx_finds_its_library() -> None:
    pytest.importorskip("tensorrt_rtx")
    result = run_python("""
import ctypes
from bilateral_export.engine.installation.library import load_library
load_library("tensorrt_rtx")
print(ctypes.CDLL("libtensorrt_rtx.so").getInferLibVersion() > 0)
""")
    assert result.stdout.strip() == "True", result.stderr
