"""A model without its large weights, for what needs the graph: opening it, inferring shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bilateral_export.lowering.subgraphs import needed_for

# Smaller ones may be shapes and axes, which are read as values.
_LARGE_BYTES = 4096
_APART = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
}


def without_weights(
    model: onnx.ModelProto, outputs: Sequence[str] = ()
) -> tuple[onnx.ModelProto, dict[str, NDArray[np.generic]]]:
    """Return a copy of a model whose large weights are declared external, and those weights.

    Serialising a model with 350 MB of weights takes seconds, and each of its readers wants it.

    Args:
        model: The model.
        outputs: Tensors of it that are the copy's outputs, which has nothing then that is not
            needed for them. (): its own, and all of it.
    """
    weights: dict[str, NDArray[np.generic]] = {}
    graph = onnx.GraphProto()
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    if outputs:
        needed = _keep_needed(graph, outputs)
    for tensor in model.graph.initializer:
        if outputs and tensor.name not in needed:
            continue
        if tensor.data_type in _APART and tensor.ByteSize() >= _LARGE_BYTES:
            weights[tensor.name] = numpy_helper.to_array(tensor)
            entry = graph.initializer.add(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tensor.dims,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            entry.external_data.add(key="location", value="weights")
        else:
            graph.initializer.append(tensor)
    light = onnx.ModelProto(
        ir_version=model.ir_version, producer_name=model.producer_name, graph=graph
    )
    for field in ("opset_import", "functions", "metadata_props"):
        getattr(light, field).extend(getattr(model, field))
    return light, weights


def _keep_needed(graph: onnx.GraphProto, outputs: Sequence[str]) -> set[str]:
    """Give a graph other outputs, drop the nodes they do not need, and return what is read."""
    kept, needed = needed_for(outputs, graph.node)
    declared = {value.name: value for value in graph.output}
    # Whoever opens it infers the type of one that was none before.
    values = [declared.get(name) or onnx.ValueInfoProto(name=name) for name in outputs]
    replaced = onnx.GraphProto(node=kept, output=values)
    del graph.node[:], graph.output[:]
    graph.node.extend(replaced.node)
    graph.output.extend(replaced.output)
    return needed
