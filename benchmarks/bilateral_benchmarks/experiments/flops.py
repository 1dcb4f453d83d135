"""Operation counts: the floating-point operations of a model."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.shape_inference

from bilateral_export.artifact import load_graph
from bilateral_export.op import contract


def model_flops(path: Path, batch: int = 1) -> int:
    """Return the operations of an exported file's matrix products, convolutions and attentions.

    A product-and-sum counts as two. Softmax, norms and other elementwise work count nothing, so
    that the share of the peak includes their cost.

    Args:
        path: A canonical file (not a lowered one: padding columns are not work).
        batch: Size of the free first axis.
    """
    model = load_graph(path)
    free = {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input}
    # Also where the exporter recorded a shape: that would win over what is inferred.
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param and size.dim_param in free:
                size.dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    flops = [_node_flops(node, shapes) for node in graph.node]
    assert all(count > 0 for count in flops if count is not None), "a shape was not inferred"
    return sum(count for count in flops if count is not None)


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int | None:
    if node.domain == contract.DOMAIN:
        batch, heads, queries, depth = shapes[node.input[0]]
        return 4 * batch * heads * queries * shapes[node.input[1]][2] * depth
    if node.op_type == "MatMul":
        return 2 * _size(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        weight = shapes[node.input[1]]
        return 2 * shapes[node.output[0]][0] * _size(weight)
    if node.op_type == "Conv":
        weight = shapes[node.input[1]]
        return 2 * _size(shapes[node.output[0]]) * _size(weight[1:])
    return None


def _size(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
