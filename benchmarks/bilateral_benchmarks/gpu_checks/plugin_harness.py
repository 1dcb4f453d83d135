"""A harness that runs a plugin library as TensorRT would, without TensorRT.

    with PluginCall(library, operands) as call:
        output = call()

The library is loaded, its creator asked for a plugin, the plugin configured, serialised, read back
and enqueued on the operands' own memory. On a GPU the output is there when the stream is done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.op.operands import N_TENSORS, Operands

FILE_NAME = "libbilateral_harness.so"
# nvinfer1::DataType.
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 7}


class _Node(ctypes.Structure):
    _fields_ = (
        ("scale", ctypes.c_float),
        ("query_prefix", ctypes.c_int32),
        ("key_prefix", ctypes.c_int32),
        ("causal", ctypes.c_int32),
        ("range_kernel", ctypes.c_char_p),
        ("spatial_kernel", ctypes.c_char_p),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("sizes", ctypes.c_int64 * 8),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


class PluginCall:
    """One node of the operator, ready to be put on a stream any number of times.

    Attributes:
        inputs: The node's inputs, contiguous, in the operator's order; absent ones left out.
        output: `[B, H, Nq, D]`, what every call overwrites.
        workspace: Scratch memory.
    """

    def __init__(self, plugin: Path, operands: Operands) -> None:
        """Create and configure the plugin.

        Args:
            plugin: The plugin library; the harness lies beside it.
            operands: Tensors on one device.

        Raises:
            UserError: A library is missing, or the plugin refuses the node, with its reason.
        """
        self._library = _load(plugin)
        tensors = operands.arguments[:N_TENSORS]
        self.inputs = [tensor.contiguous() for tensor in tensors if tensor is not None]
        node = _Node(
            operands.scale, operands.query_prefix, operands.key_prefix, operands.causal,
            operands.range_kernel.encode(), operands.spatial_kernel.encode(),
        )  # fmt: skip
        described = (_Tensor * len(self.inputs))(*map(_describe, self.inputs))
        self._handle = self._library.harnessCreate(
            str(plugin).encode(), ctypes.byref(node), described, len(self.inputs)
        )
        if not self._handle:
            raise UserError(f"the plugin does not take this node: {self._reason()}")
        query = self.inputs[0]
        size = self._library.harnessWorkspaceBytes(self._handle)
        self.workspace = torch.empty(size, dtype=torch.uint8, device=query.device)
        self.output = torch.empty_like(query)

    def __call__(self) -> Tensor:
        """Put the node on the current stream; the output, which belongs to this object."""
        self.enqueue(1)
        return self.output

    def enqueue(self, repetitions: int) -> float:
        """Put the node on the current stream that many times; the host's seconds for one.

        Raises:
            RuntimeError: The plugin or the driver reports an error.
        """
        device = self.output.device
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        nanoseconds: float = self._library.harnessEnqueue(
            self._handle, _pointers(self.inputs), self.output.data_ptr(),
            self.workspace.data_ptr(), stream, repetitions,
        )  # fmt: skip
        if nanoseconds < 0:
            raise RuntimeError(f"enqueue failed: {self._reason()}")
        return nanoseconds * 1e-9

    def close(self) -> None:
        """Destroy the plugin; the library stays loaded."""
        self._library.harnessDestroy(self._handle)
        self._handle = None

    def __enter__(self) -> PluginCall:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _reason(self) -> str:
        reason: bytes = self._library.harnessError()
        return reason.decode("utf-8", "replace")


def require_harness(plugin: Path) -> Path:
    """Return the harness beside a plugin library.

    Raises:
        UserError: There is none: a wheel carries the plugin alone.
    """
    path = plugin.with_name(FILE_NAME)
    if not path.exists():
        raise UserError(f"the plugin harness {path} does not exist", "Build it: make plugin.")
    return require_file(path, "plugin harness")


def _load(plugin: Path) -> ctypes.CDLL:
    path = require_harness(plugin)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be loaded: {error}", "Build it: make plugin.") from error
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.harnessCreate.argtypes = (ctypes.c_char_p, pointer, pointer, number)
    library.harnessCreate.restype = pointer
    library.harnessWorkspaceBytes.argtypes = (pointer,)
    library.harnessWorkspaceBytes.restype = ctypes.c_size_t
    library.harnessEnqueue.argtypes = (pointer, pointer, pointer, pointer, pointer, number)
    library.harnessEnqueue.restype = ctypes.c_double
    library.harnessDestroy.argtypes = (pointer,)
    library.harnessDestroy.restype = None
    library.harnessError.restype = ctypes.c_char_p
    return library


def _describe(tensor: Tensor) -> _Tensor:
    shape = tuple(tensor.shape)
    return _Tensor((ctypes.c_int64 * 8)(*shape), len(shape), _TYPES[tensor.dtype])


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
