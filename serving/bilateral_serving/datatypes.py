"""Triton's element types and sizes, converted to and from `TensorSpec`."""

from __future__ import annotations

from collections.abc import Sequence

from bilateral_export.tensors import BATCH, TensorSpec

# NumPy's name (and "bfloat16", which NumPy lacks) -> Triton's.
TRITON_NAMES = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
    "object": "BYTES",
}
_NUMPY_NAMES = {triton: numpy for numpy, triton in TRITON_NAMES.items()}


def triton_name(spec: TensorSpec) -> str:
    """Return Triton's name of the element type."""
    return TRITON_NAMES[spec.dtype]


def from_triton(name: str, datatype: str, sizes: Sequence[int], batched: bool) -> TensorSpec:
    """Return a tensor as Triton describes it; each dynamic size gets a name.

    Args:
        name: The tensor's name.
        datatype: Triton's name of the element type, such as "FP32".
        sizes: Its sizes, -1 for a dynamic one, the batch included.
        batched: Whether the first axis is the batch.
    """
    shape = tuple(
        size if size >= 0 else BATCH if batched and axis == 0 else f"{name}.{axis}"
        for axis, size in enumerate(sizes)
    )
    return TensorSpec(name, _NUMPY_NAMES.get(datatype, datatype.lower()), shape)
