"""The ONNX Runtime runtime: the operator runs through its function body."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from bilateral_export.errors import UnsupportedError, UserError
from bilateral_export.files import require_file
from bilateral_export.runners.base import BaseRunner
from bilateral_export.runners.subnormals import subnormals_flushed
from bilateral_export.tensors import Array, TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeRunner(BaseRunner[onnxruntime.InferenceSession]):
    """Runs an ONNX file with ONNX Runtime.

    Weights of a Gaussian kernel fall below float32's smallest normal number (1.2e-38) where tokens
    are far apart, and no output shows them; but many CPUs compute with subnormal numbers many times
    slower. So they are zero here, as in the server.

    Args:
        path: The ONNX file.
        threads: Threads within one operator; None leaves it to ONNX Runtime (one per core).
        provider: The execution provider, such as "CPUExecutionProvider".
        flush_subnormals: False keeps them, as ONNX Runtime does by itself.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        provider: str = "CPUExecutionProvider",
        *,
        flush_subnormals: bool = True,
    ) -> None:
        super().__init__(f"onnxruntime {provider.removesuffix('ExecutionProvider')}", path.name)
        self._path = require_file(path, "model")
        self._threads = threads
        self._provider = provider
        self._flush = flush_subnormals

    def _open(self) -> onnxruntime.InferenceSession:
        """Create the session.

        Raises:
            UserError: The file is not an ONNX model; `UnsupportedError` where the provider is not
                installed or has no kernel for something in it.
        """
        available = onnxruntime.get_available_providers()
        if self._provider not in available:
            raise UnsupportedError(
                f"ONNX Runtime has no {self._provider} here", f"It has {', '.join(available)}."
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions, which say the same
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        options.add_session_config_entry("session.set_denormal_as_zero", str(int(self._flush)))
        try:
            with subnormals_flushed(self._flush):  # a session may set this thread's, for good
                session = onnxruntime.InferenceSession(
                    self._model(options), options, providers=[self._provider]
                )
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            raise _refusal(self._path, self._provider, error) from error
        self.inputs = tuple(map(_spec, session.get_inputs()))
        self.outputs = tuple(map(_spec, session.get_outputs()))
        return session

    def _model(self, options: onnxruntime.SessionOptions) -> Path | bytes:
        """What the session opens; other ways to run the same file replace this."""
        del options
        return self._path

    def _run(
        self, loaded: onnxruntime.InferenceSession, arrays: Mapping[str, Array]
    ) -> dict[str, Array]:
        names = [spec.name for spec in self.outputs]
        try:
            with subnormals_flushed(self._flush):
                made = loaded.run(names, dict(arrays))
        except Exception as error:  # as above
            reason = str(error).rpartition("] : ")[2]
            raise UserError(
                f"ONNX Runtime cannot run {self._path} on these inputs ({reason})",
                "Export it again with `bilateral export`.",
            ) from error
        return dict(zip(names, made, strict=True))


def _spec(node: onnxruntime.NodeArg) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _refusal(path: Path, provider: str, error: Exception) -> UserError:
    reason = str(error).rpartition("] : ")[2] or str(error)
    if "NOT_IMPLEMENTED" in reason:
        return UnsupportedError(
            f"ONNX Runtime's {provider} cannot run {path} ({reason})",
            "Its CPU provider has no bfloat16 kernels, for one; export fp32 or fp16 for it.",
        )
    return UserError(
        f"{path} is not an ONNX model that ONNX Runtime can load ({reason})",
        "Export it again with `bilateral export`.",
    )
