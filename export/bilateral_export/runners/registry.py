"""The runtimes that read a file of this package, each with its runner and its installation.

Nothing slow is imported here: a runner's module, and its runtime, come with `Runtime.load`.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bilateral_export.errors import UnsupportedError, UserError

if TYPE_CHECKING:
    from bilateral_export.runners.base import BaseRunner


@dataclass(frozen=True)
class Runtime:
    """One runtime, or one execution provider of it.

    Attributes:
        name: For options, tables and messages, such as "openvino".
        title: The product's name.
        runner: Its runner's module in this folder, and the class, as "module:Class".
        package: The Python package that must be importable.
        extra: The extra of bilateral-serve that installs the package.
        reads: "onnx" for an exported file, "plan" for a TensorRT plan.
        provider: ONNX Runtime's execution provider; empty for the runner's default.
        distributions: The distributions whose versions reports name.
        lowering: The target to lower an exported file for; empty where there is none.
        server_extra: The extra that installs the package beside a server, whose Python backend can
            run it; empty where the Python backend cannot.
        serves_exported: Whether the Python backend runs an exported file that is not lowered.
        devices: Where the Python backend runs it.
        diagnostic: Whether it only shows where a fault is, and never serves.
    """

    name: str
    title: str
    runner: str
    package: str
    extra: str
    reads: Literal["onnx", "plan"] = "onnx"
    provider: str = ""
    distributions: tuple[str, ...] = ()
    lowering: str = ""
    server_extra: str = ""
    serves_exported: bool = True
    devices: tuple[str, ...] = ("cpu",)
    diagnostic: bool = False

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'bilateral-serve[{self.extra}]'"

    @property
    def installed(self) -> bool:
        """Whether its package can be imported here."""
        return importlib.util.find_spec(self.package) is not None

    def missing(self) -> str:
        """Return why this machine cannot run it; empty where it can."""
        if not self.installed:
            return f"not installed: {self.install}"
        if self.provider:
            import onnxruntime

            if self.provider not in onnxruntime.get_available_providers():
                return f"this ONNX Runtime has no {self.provider}"
        return ""

    def require(self) -> None:
        """Refuse to go on where its package is not installed.

        Raises:
            UnsupportedError: It is not; the message says how to install it.
        """
        if not self.installed:
            raise UnsupportedError(f"{self.title} is not installed", self.install)

    def load(self, path: Path, **options: Any) -> BaseRunner[Any]:
        """Return its runner for a file, not open yet.

        Args:
            path: The file.
            options: Further arguments of the runner.
        """
        module, _, name = self.runner.partition(":")
        made = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        runner: BaseRunner[Any] = made(
            path, **({"provider": self.provider} if self.provider else {}), **options
        )
        return runner


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="onnxruntime",
            title="ONNX Runtime",
            runner="onnxruntime_runner:OnnxRuntimeRunner",
            package="onnxruntime",
            extra="export",
            distributions=("onnxruntime", "onnxruntime-gpu"),
            lowering="onnxruntime-cpu",
            server_extra="server",
            devices=("cpu", "gpu"),
        ),
        Runtime(
            name="onnxruntime custom op",
            title="onnxruntime-extensions",
            runner="custom_op:CustomOpRunner",
            package="onnxruntime_extensions",
            extra="custom-op",
            diagnostic=True,
        ),
        Runtime(
            name="openvino",
            title="OpenVINO",
            runner="openvino_runner:OpenVinoRunner",
            package="openvino",
            extra="openvino",
            distributions=("openvino",),
            lowering="openvino",
            server_extra="openvino",
            serves_exported=False,
        ),
        Runtime(
            name="onnxruntime CUDA",
            title="ONNX Runtime for CUDA",
            runner="onnxruntime_runner:OnnxRuntimeRunner",
            package="onnxruntime",
            extra="gpu",
            provider="CUDAExecutionProvider",
        ),
        Runtime(
            name="tensorrt",
            title="TensorRT",
            runner="tensorrt_runner:TensorRTRunner",
            package="tensorrt",
            extra="gpu",
            reads="plan",
            distributions=("tensorrt",),
        ),
    )
}

DEFAULT = "onnxruntime"
LOWERED = tuple(name for name, runtime in RUNTIMES.items() if runtime.lowering)
SERVED = tuple(name for name, runtime in RUNTIMES.items() if runtime.server_extra)


def lowered_runtime(name: str) -> Runtime:
    """Return the runtime of this name, one that files are lowered for.

    Raises:
        UserError: There is none.
    """
    if name not in LOWERED:
        known = " or ".join(f"'{each}'" for each in LOWERED)
        raise UserError(f"unknown runtime '{name}'", f"Use {known}.")
    return RUNTIMES[name]
