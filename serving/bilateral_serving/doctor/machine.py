"""The machine's inventory: driver, GPUs, runtimes, server and plugin."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bilateral_export.engine.installation.cuda import Driver, read_driver
from bilateral_export.engine.installation.plugin import (
    PluginContents,
    find_plugin,
    plugin_contents,
    require_plugin,
)
from bilateral_export.errors import UserError
from bilateral_export.runners.registry import RUNTIMES, SERVED
from bilateral_serving.installation import Installation, find, find_libpython
from bilateral_serving.releases import Release, release

_NVINFER = ("libnvinfer.so.11", "libnvinfer.so.10")


@dataclass(frozen=True)
class Machine:
    """The machine, as far as serving is concerned. None means: not there.

    Attributes:
        driver: The NVIDIA driver and its GPUs.
        tensorrt: Version of the full TensorRT that the server would load plans with.
        tensorrt_rtx: Version of TensorRT for RTX, which builds plans.
        runtimes: The version in this Python of each runtime that the Python backend can run.
        tritonserver: The server that `bilateral serve` would start.
        triton: Its version, or that of the wheel it comes from.
        in_container: The server is another machine's container: what is installed here, and the
            GPU that is here, say nothing about it.
        release: The release of that container, if it was named.
        numpy: Its version in this Python.
        libpython: This Python's shared library.
        plugin: The plugin library that would be given to the server.
        plugin_contents: What that library holds.
    """

    driver: Driver | None = None
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    runtimes: Mapping[str, str | None] = field(default_factory=dict)
    tritonserver: Installation | None = None
    triton: str | None = None
    in_container: bool = False
    release: Release | None = None
    numpy: str | None = None
    libpython: Path | None = None
    plugin: Path | None = None
    plugin_contents: PluginContents | None = None

    @property
    def facts(self) -> dict[str, str]:
        """The machine in words, for the report."""
        driver = self.driver
        gpus = driver.devices if driver else ()
        server = self.tritonserver
        return {
            "python": platform.python_version(),
            "driver": f"CUDA {driver.cuda[0]}.{driver.cuda[1]}" if driver else "none",
            "GPU": ", ".join(
                f"{gpu.name} (sm_{gpu.sm}, {gpu.free_bytes >> 20} of {gpu.total_bytes >> 20} MiB"
                " free)"
                for gpu in gpus
            )
            or "none",
            "TensorRT": self.tensorrt or "none",
            "TensorRT for RTX": self.tensorrt_rtx or "none",
            **{RUNTIMES[name].title: self.runtimes.get(name) or "none" for name in SERVED},
            "tritonserver": _described(self.release)
            if self.in_container
            else (f"{self.triton or 'version unknown'}, {server.binary}" if server else "none"),
            "numpy": self.numpy or "none",
            "libpython": str(self.libpython or "none"),
            "plugin": str(self.plugin or "none"),
        }


def read_machine(
    tritonserver: Path | None = None,
    plugin: Path | None = None,
    tensorrt: str | None = None,
    container: str | None = None,
) -> Machine:
    """Return what this machine has, or the container that will serve.

    Args:
        tritonserver: The server's executable; None to search for it.
        plugin: The plugin library; None for the installation's.
        tensorrt: Version of TensorRT in the container that will serve; None to serve here.
        container: Release of NVIDIA's Triton container that will serve; `tensorrt` is then for a
            release whose TensorRT is not known.

    Raises:
        UserError: The release is not known or the version not written as one, or a file that was
            named is not there or not what it should be.
    """
    serves = None if container is None else release(container)
    in_container = serves is not None or tensorrt is not None
    if tensorrt is not None and not re.fullmatch(r"\d+(\.\d+)+", tensorrt):
        raise UserError(f"{tensorrt!r} is not a version of TensorRT", "Write it as 10.14.1.")
    library, contents = _found_plugin() if plugin is None else _named_plugin(plugin)
    if serves is not None:
        tensorrt = tensorrt or serves.tensorrt
    server = (
        None if in_container else _found_server() if tritonserver is None else find(tritonserver)
    )
    return Machine(
        driver=read_driver(),
        tensorrt=tensorrt if in_container else _installed_tensorrt(),
        tensorrt_rtx=_version("tensorrt-rtx-cu13") or _version("tensorrt-rtx"),
        runtimes={
            name: next(filter(None, map(_version, RUNTIMES[name].distributions)), None)
            for name in SERVED
        },
        tritonserver=server,
        triton=_triton_version(server) if server is not None else None,
        in_container=in_container,
        release=serves,
        numpy=_version("numpy"),
        libpython=find_libpython(),
        plugin=library,
        plugin_contents=contents,
    )


def _described(release: Release | None) -> str:
    if release is None:
        return "in a container"
    return (
        f"{release.server}, in the container {release.name}, with ONNX Runtime"
        f" {release.onnxruntime} and Python {release.python}"
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed_tensorrt() -> str | None:
    """Return the version that the library gives; a container has no Python package of it."""
    for soname in _NVINFER:
        try:
            number = int(ctypes.CDLL(soname).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return _version("tensorrt-cu13-libs") or _version("tensorrt-cu12-libs")


def _found_server() -> Installation | None:
    try:
        return find()
    except UserError:
        return None


def _triton_version(server: Installation) -> str | None:
    """Return the server's version; for the wheel, which has none, that of its package."""
    if server.version is not None:
        return server.version
    version = _version("nvidia-pytriton")
    return f"of nvidia-pytriton {version}" if server.is_wheel and version else None


def _named_plugin(path: Path) -> tuple[Path, PluginContents]:
    library = require_plugin(path)
    return library, plugin_contents(library)


def _found_plugin() -> tuple[Path | None, PluginContents | None]:
    """Return the installation's plugin library and what it holds, as far as that can be told."""
    library = None
    try:
        library = find_plugin()
        return library, plugin_contents(library) if library is not None else None
    except UserError:
        return library, None
