"""The exported graph with its 16-bit types widened to float32: its meaning without its rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from bilateral_export.artifact import load_graph
from bilateral_export.files import atomic_file

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn every float16 and bfloat16 in a graph into float32, in place.

    Weights keep the values they were rounded to. What is left differs from the model with rounded
    weights only by float32 rounding, so that a fault too small for a 16-bit budget shows; and any
    runtime can run it, bfloat16 kernels or not.

    Returns:
        The same model.
    """
    graph = model.graph
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        kind = value.type.tensor_type
        if kind.elem_type in _NARROW:
            kind.elem_type = TensorProto.FLOAT
    for node in [*graph.node, *(node for function in model.functions for node in function.node)]:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
                attribute.i = TensorProto.FLOAT
    return model


def widen_file(path: Path, target: Path) -> None:
    """Write the widened graph of an ONNX file.

    Raises:
        UserError: The target cannot be written.
    """
    model = widen(load_graph(path))
    with atomic_file(target) as temporary:
        onnx.save(model, temporary)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
