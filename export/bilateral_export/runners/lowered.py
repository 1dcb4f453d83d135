"""A file in the form that is fastest on one runtime: lowered when it is loaded, where it can be."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.lowering.lower import Lowering, has_attention, lower
from bilateral_export.runners.base import Runner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.openvino_runner import OpenVinoRunner
from bilateral_export.tensors import Array, TensorSpec

Engine = Literal["onnxruntime", "openvino"]


class LoweredRunner:
    """Runs an ONNX file on the CPU, lowered to a temporary file first.

    `OnnxRuntimeRunner` and `OpenVinoRunner` run a file as it is, which is what parity judges. A
    file that was lowered before, or has no attention of ours, is run as it is here too; so is one
    that cannot be lowered, and `refused` then says why.

    Args:
        path: The ONNX file.
        engine: What runs it.
        threads: Threads within one call; None leaves it to the runtime.
        lower: False runs the file as it is.

    Attributes:
        lowering: What was done, from `__enter__` on; None where nothing was.
        refused: Why the file could not be lowered, or "".
    """

    def __init__(
        self,
        path: Path,
        engine: Engine = "onnxruntime",
        threads: int | None = None,
        *,
        lower: bool = True,
    ) -> None:
        self._path = require_file(path, "model")
        self._engine = engine
        self._threads = threads
        self._lower = lower
        self._runner: Runner = self._as_is(path)
        self.name = self._runner.name
        self.lowering: Lowering | None = None
        self.refused = ""

    def __enter__(self) -> LoweredRunner:
        """Lower the file and load what came of it.

        Raises:
            UserError: The file is not an ONNX model that the runtime can run.
        """
        # Both runtimes have read the whole file when they have opened it.
        with tempfile.TemporaryDirectory() as scratch:
            self._runner = self._as_is(self._lowered(Path(scratch)))
            self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, traceback)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        return self._runner.outputs

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Runner.run`."""
        return self._runner.run(arrays)

    def _lowered(self, scratch: Path) -> Path:
        if not self._lower or not has_attention(self._path):
            return self._path
        target = "openvino" if self._engine == "openvino" else "onnxruntime-cpu"
        try:
            done = lower(self._path, target, scratch / self._path.name)
        except UserError as error:
            self.refused = str(error)
            return self._path
        self.lowering = done.lowering
        return done.path

    def _as_is(self, path: Path) -> Runner:
        if self._engine == "openvino":
            return OpenVinoRunner(path, self._threads)
        return OnnxRuntimeRunner(path, self._threads)
