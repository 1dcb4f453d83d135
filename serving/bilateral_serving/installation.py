"""The installed tritonserver: its executable, backends, version and libpython."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bilateral_export.errors import UserError

CONTAINER = Path("/opt/tritonserver/bin/tritonserver")
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A tritonserver and its surroundings.

    Attributes:
        binary: The executable.
        backends: Its backend directory.
        stubs: In the wheel: one Python stub per Python version, of which one must be put into the
            backend directory. None elsewhere, where the backend directory is complete.
        libraries: Directories that its shared libraries need on LD_LIBRARY_PATH.
    """

    binary: Path
    backends: Path
    stubs: Path | None
    libraries: tuple[Path, ...]

    @property
    def is_wheel(self) -> bool:
        """Whether it comes from the nvidia-pytriton wheel and runs models in this Python."""
        return self.stubs is not None

    @property
    def version(self) -> str | None:
        """Its version, which a container says in a file; None where there is none."""
        file = self.binary.parent.parent / "TRITON_VERSION"
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None

    @property
    def stub(self) -> Path | None:
        """The stub for this Python, in the wheel."""
        return self.stubs / PYTHON_VERSION / STUB if self.stubs else None


def has_gpu() -> bool:
    """Return whether this machine has a GPU that NVIDIA's driver serves."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def find(binary: Path | None = None) -> Installation:
    """Find a tritonserver: the given one, else on PATH, in /opt/tritonserver, or the wheel's.

    Raises:
        UserError: The given one is not an executable file, or there is none.
    """
    if binary is not None:
        if not _is_executable(binary):
            raise UserError(
                f"{binary} is not an executable file", "Give the path of a tritonserver."
            )
        return describe(binary)
    on_path = shutil.which("tritonserver")
    for candidate in (Path(on_path) if on_path else None, CONTAINER, _in_wheel()):
        if candidate is not None and _is_executable(candidate):
            return describe(candidate)
    raise UserError(
        "no tritonserver is installed",
        "Install one with `pip install 'bilateral-serve[server]'`, or run inside NVIDIA's Triton "
        "container, or name one with --tritonserver.",
    )


def describe(binary: Path) -> Installation:
    """Return the installation that an executable belongs to, by the layout around it."""
    root = binary.resolve().parent.parent
    stubs = root / "python_backend_stubs"
    libraries = root.parent.parent / "nvidia_pytriton.libs"
    return Installation(
        binary=binary.resolve(),
        backends=root / "backends",
        stubs=stubs if stubs.is_dir() else None,
        libraries=(libraries,) if libraries.is_dir() else (),
    )


def find_libpython(directories: Iterable[Path] | None = None) -> Path | None:
    """Return the running Python's shared library, which the stub of the wheel loads.

    Args:
        directories: Where to look. None: beside this Python, then where systems keep libraries.
    """
    name = f"libpython{PYTHON_VERSION}.so.1.0"
    for directory in _library_directories() if directories is None else directories:
        if (directory / name).is_file():
            return directory / name
    return None


def _library_directories() -> tuple[Path, ...]:
    configured = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    return (
        Path(sys.base_prefix) / "lib",
        configured,
        configured / multiarch,
        Path("/usr/lib") / multiarch,
        Path("/usr/lib64"),
        Path("/usr/local/lib"),
    )


def _in_wheel() -> Path | None:
    # The package itself is not imported: that is slow and has side effects.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "tritonserver" / "bin" / "tritonserver"


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
