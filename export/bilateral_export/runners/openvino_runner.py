"""The OpenVINO runtime: an exported file with the operator's function body inlined in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx.inliner

from bilateral_export.artifact import interface, load_graph
from bilateral_export.errors import UnsupportedError, UserError
from bilateral_export.files import require_file
from bilateral_export.runners.base import BaseRunner
from bilateral_export.runners.registry import RUNTIMES
from bilateral_export.tensors import Array

if TYPE_CHECKING:
    import openvino

ComputePrecision = Literal["f32", "bf16"]


class OpenVinoRunner(BaseRunner["openvino.CompiledModel"]):
    """Runs an ONNX file with OpenVINO's CPU plugin.

    OpenVINO's reader knows neither foreign domains nor ONNX functions, so functions are inlined
    before it reads the model. The file is not changed. Several threads may call `run` at once.

    Args:
        path: The ONNX file.
        threads: Threads for one inference; None leaves it to OpenVINO.
        compute: What the CPU computes in. It is always said, because OpenVINO otherwise picks
            bf16 on a CPU that has it.
    """

    def __init__(
        self, path: Path, threads: int | None = None, compute: ComputePrecision = "f32"
    ) -> None:
        super().__init__(f"openvino {compute}", path.name)
        self._path = require_file(path, "model")
        self._threads = threads
        self._compute = compute
        self._requests = threading.local()

    def _open(self) -> openvino.CompiledModel:
        """Read and compile the model.

        Raises:
            UserError: The file is not an ONNX model; `UnsupportedError` where OpenVINO is not
                installed or cannot run it.
        """
        RUNTIMES["openvino"].require()
        import openvino

        model = inlined(self._path)
        self.inputs, self.outputs = interface(model)
        options: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": self._compute}
        if self._threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._threads
        try:
            core = openvino.Core()
            read = core.read_model(model.SerializeToString())
            return core.compile_model(read, "CPU", options)
        except RuntimeError as error:
            raise UnsupportedError(*_refusal(self._path, error)) from error

    def _close(self, loaded: openvino.CompiledModel) -> None:
        self._requests = threading.local()

    def _run(self, loaded: openvino.CompiledModel, arrays: Mapping[str, Array]) -> dict[str, Array]:
        # A request holds the buffers of one inference, so each thread has its own.
        if not hasattr(self._requests, "request"):
            self._requests.request = loaded.create_infer_request()
        request: openvino.InferRequest = self._requests.request
        # Not ascontiguousarray, which gives a scalar an axis.
        given = [np.asarray(arrays[spec.name], order="C") for spec in self.inputs]
        try:
            results = request.infer(given, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise UserError(*_refusal(self._path, error, " on these inputs")) from error
        return {spec.name: results[number] for number, spec in enumerate(self.outputs)}


def inlined(path: Path) -> onnx.ModelProto:
    """Return an ONNX file's model, weights included, with its functions inlined.

    Raises:
        UserError: The file is not an ONNX model, or is larger than one protobuf message may be.
    """
    model = load_graph(path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise UserError(
            f"{path} is not a valid ONNX model ({error})",
            "Export it again with `bilateral export`.",
        ) from error
    return onnx.inliner.inline_local_functions(model)


def _refusal(path: Path, error: RuntimeError, when: str = "") -> tuple[str, str]:
    """Return what cannot run and what to do; OpenVINO does not say whose fault it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"OpenVINO cannot run {path}{when} ({'; '.join(lines[-2:])})",
        "Export it again with `bilateral export`.",
    )
