"""The TensorRT plugin library: where it is, what it holds, and its registration."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass
from pathlib import Path

from bilateral_export.engine.installation.library import Library
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.op import contract

FILE_NAME = "libbilateral_attention.so"
ENVIRONMENT = "BILATERAL_PLUGIN"
_PACKAGE = Path(__file__).resolve().parents[2]
# Where a wheel carries it, and where `make plugin` leaves it in a source tree.
_PLACES = (_PACKAGE / "lib" / FILE_NAME, _PACKAGE.parent / "plugin" / "build" / FILE_NAME)
_HOW_TO_BUILD = "Build it with `make plugin`, or give its path with --plugin."


@dataclass(frozen=True)
class PluginContents:
    """What a plugin library says of itself.

    Attributes:
        version: Of the operator it implements.
        targets: SMs it holds GPU code for, such as 90, ascending.
        kernels: Number of kernels over all targets.
    """

    version: str
    targets: tuple[int, ...]
    kernels: int


def find_plugin() -> Path | None:
    """Return this installation's plugin library: $BILATERAL_PLUGIN, the wheel's or the build's.

    Raises:
        UserError: The environment variable names a file that is not there.
    """
    if named := os.environ.get(ENVIRONMENT):
        return require_file(Path(named), f"plugin library (${ENVIRONMENT})").resolve()
    return next((place for place in _PLACES if place.is_file()), None)


def require_plugin(path: Path | None) -> Path:
    """Return `path`, or else the installation's plugin library.

    Raises:
        UserError: There is none.
    """
    if path is not None:
        return require_file(path, "plugin library").resolve()
    found = find_plugin()
    if found is None:
        raise UserError("the plugin library is not built", _HOW_TO_BUILD)
    return found


def plugin_contents(path: Path) -> PluginContents:
    """Return what a plugin library says it holds; needs neither TensorRT nor a GPU.

    Raises:
        UserError: The file is not a shared library of this machine, or not this plugin.
    """
    try:
        describe = ctypes.CDLL(str(path)).bilateralPluginContents
    except (OSError, AttributeError) as error:
        raise UserError(
            f"{path} is not the BilateralAttention plugin ({error})", _HOW_TO_BUILD
        ) from error
    describe.restype = ctypes.c_char_p
    contents = json.loads(describe())
    return PluginContents(
        str(contents["version"]), tuple(contents["targets"]), int(contents["kernels"])
    )


def load_plugin(library: Library, path: Path) -> None:
    """Register the plugin of `path` with TensorRT, once; it stays for the process's life.

    Raises:
        UserError: TensorRT does not take the library, or another one of this name is loaded.
    """
    path = path.resolve()
    plugin_contents(path)
    loaded = _LOADED.get(library.name)
    if loaded == path:
        return
    if loaded is not None:
        raise UserError(
            f"the plugin {loaded} is loaded already; {path} cannot be loaded beside it",
            "Use one plugin library per process.",
        )
    registry = library.trt.get_plugin_registry()
    with library.log.fresh():
        try:
            handle, reason = registry.load_library(str(path)), ""
        except RuntimeError as error:
            handle, reason = None, str(error)
        reason = reason or next(iter(library.log.errors), "it gives no reason")
    creator = registry.get_creator(contract.OP_TYPE, str(contract.VERSION), contract.DOMAIN)
    if handle is None or creator is None:
        raise UserError(f"{library.name} {library.version} does not load {path}: {reason}")
    _LOADED[library.name] = path


_LOADED: dict[str, Path] = {}
