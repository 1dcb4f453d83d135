"""The TensorRT of this machine: the full library where it is, else TensorRT for RTX."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from bilateral_export.engine.installation.soname import alias_library
from bilateral_export.errors import UserError

LibraryName = Literal["tensorrt", "tensorrt_rtx"]
# The parser of TensorRT for RTX opens the first name; its wheel has only the second.
_RTX_SONAMES = ("libtensorrt_rtx.so", "libtensorrt_rtx.so.1")
# Said at severity INFO when a plan is built; TensorRT for RTX was seen to.
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True)
class Library:
    """One of the two libraries, with what differs between them.

    Attributes:
        name: Which one; it is written into every manifest and table.
        version: Its version, such as "10.14.1.48".
        trt: The Python module; the API is the same.
        log: What the library said, oldest first.
        logger: The `ILogger` that writes into `log`. TensorRT keeps the first one it is given for
            the whole process and ignores later ones.
    """

    name: LibraryName
    version: str
    trt: Any = field(repr=False)
    log: Log = field(repr=False)
    logger: Any = field(repr=False)

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that this machine does not have."""
        return self.name == "tensorrt_rtx"


class Log:
    """Collects what a library says."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def add(self, severity: str, message: str) -> None:
        """Append a message; `severity` is the library's name for it, such as "ERROR"."""
        self.lines.append((severity, " ".join(message.split())))

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Within the block the log holds only what is said in it; afterwards, what it held."""
        before, self.lines = self.lines, []
        try:
            yield
        finally:
            self.lines = before

    @property
    def errors(self) -> list[str]:
        """The messages of errors."""
        return [message for severity, message in self.lines if "ERROR" in severity]

    @property
    def activation_bytes(self) -> int | None:
        """Device memory of one execution context, as a builder told it; None if none did."""
        told = [_ACTIVATIONS.match(message) for _, message in self.lines]
        return max((int(match[1]) for match in told if match), default=None)


@functools.cache
def load_library(name: LibraryName | None = None) -> Library:
    """Import TensorRT, once per process.

    Args:
        name: Which library; when None, `tensorrt` if it can be imported, else `tensorrt_rtx`.

    Raises:
        UserError: Neither can be imported; the reasons are named.
    """
    reasons = []
    for candidate in get_args(LibraryName) if name is None else (name,):
        try:
            trt = importlib.import_module(candidate)
        # A wheel without its libraries raises whatever its __init__ meets first.
        except Exception as error:
            reasons.append(f"{candidate}: {str(error).splitlines()[0] if str(error) else error!r}")
            continue
        if candidate == "tensorrt_rtx":
            _let_parser_find_library()
        log = Log()
        return Library(candidate, str(trt.__version__), trt, log, _logger(trt, log))
    raise UserError(
        f"TensorRT cannot be imported ({'; '.join(reasons)})",
        "Install `tensorrt` (NVIDIA's library) or `tensorrt-rtx-cu13` (TensorRT for RTX, which"
        " builds plans without a GPU).",
    )


def _let_parser_find_library() -> None:
    """Keep the parser of TensorRT for RTX from aborting the process when it adds a plugin."""
    soname, target = _RTX_SONAMES
    try:
        alias_library(soname, target)
    except OSError as error:
        raise UserError(
            f"the parser of TensorRT for RTX would not find {soname} ({error})",
            f"Make a link of that name to {target} and put its folder on LD_LIBRARY_PATH before"
            " the process starts.",
        ) from error


def _logger(trt: Any, log: Log) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.INFO:
                log.add(severity.name, message)

    return Collector()
