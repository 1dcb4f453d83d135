"""Integer products: linear layers on 8-bit weights and activations quantised as they come.

`DynamicQuantizeLinear` gives a layer's input one scale and zero point for the whole tensor (uint8),
the weight has one scale per column (int8, symmetric): operators of the ONNX standard, which ONNX
Runtime's CPU provider fuses into one product. The lowering's rewrites know float products, so that
a quantised file is lowered in three steps: its products become float ones on the weights that the
integers stand for, the rewrites run, and products whose weights are still 8-bit numbers become
integer ones again. A rewrite scales whole columns, or pads them with zeros, so that the integers
of a column stay what they were.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LEVELS = 127
# Of the distance to a whole number: float32 products of a scale and an integer of 7 bits are off by
# 1e-5, weights that are no integers by up to a half.
_WHOLE = 1e-3


def quantise_columns(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return integers `[K, N]` and scales `[N]` of a weight: symmetric, one scale per column."""
    largest = np.abs(weight).max(axis=0)
    scale = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def to_integer_products(model: onnx.ModelProto, layers: Collection[str]) -> int:
    """Replace the named MatMul nodes, whose weights are constants, in place.

    The last node of each product keeps the node's name and output.

    Returns:
        How many.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    added: dict[str, onnx.TensorProto] = {}
    read: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in list(model.graph.node):
        if node.op_type != "MatMul" or node.name not in layers:
            nodes.append(node)
            continue
        source, weight, output = node.input[0], node.input[1], node.output[0]
        if f"{weight}/int8" not in added:
            integers, scale = quantise_columns(numpy_helper.to_array(weights[weight]))
            for name, array in ((f"{weight}/int8", integers), (f"{weight}/scale", scale)):
                added[name] = numpy_helper.from_array(array, name)
        quantised = [f"{source}/uint8", f"{source}/scale", f"{source}/zero"]
        made = []
        if source not in read:  # queries, keys and values may be products of one tensor
            made.append(helper.make_node("DynamicQuantizeLinear", [source], quantised))
            read.add(source)
        made += [
            helper.make_node(
                "MatMulInteger",
                [quantised[0], f"{weight}/int8", quantised[2]],
                [f"{output}/int32"],
            ),
            helper.make_node(
                "Cast", [f"{output}/int32"], [f"{output}/float"], to=TensorProto.FLOAT
            ),
            helper.make_node("Mul", [quantised[1], f"{weight}/scale"], [f"{output}/scale"]),
            helper.make_node("Mul", [f"{output}/float", f"{output}/scale"], [output]),
        ]
        for one in made:
            one.name = node.name if one.output[0] == output else f"{node.name}/{one.op_type}"
            one.metadata_props.extend(node.metadata_props)
        made[-2].name = f"{node.name}/scale"
        nodes += made
        count += 1
    _replace_nodes(model, nodes)
    model.graph.initializer.extend(added.values())
    _drop_weights(model)
    return count


def to_float_products(model: onnx.ModelProto) -> int:
    """Replace integer products by float ones on the numbers that the integers stand for, in place.

    Returns:
        How many.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    users: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        users |= dict.fromkeys(node.input, node)
    new: dict[str, onnx.NodeProto] = {}
    gone: set[str] = set()
    added: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if node.op_type != "MatMulInteger" or node.input[1] not in constants:
            continue
        quantise, cast = made[node.input[0]], users[node.output[0]]
        last = users[cast.output[0]]
        scale = made[last.input[1]]
        weight = node.input[1].removesuffix("/int8")
        if weight not in added:
            integers, factors = (
                numpy_helper.to_array(constants[name]) for name in (node.input[1], scale.input[1])
            )
            added[weight] = numpy_helper.from_array(integers * factors, weight)
        product = helper.make_node(
            "MatMul", [quantise.input[0], weight], [last.output[0]], last.name
        )
        product.metadata_props.extend(last.metadata_props)
        new[last.output[0]] = product
        gone |= {n.output[0] for n in (quantise, node, cast, scale)}
    nodes = [
        new.get(node.output[0], node) for node in model.graph.node if node.output[0] not in gone
    ]
    _replace_nodes(model, nodes)
    model.graph.initializer.extend(added.values())
    _drop_weights(model)
    return len(new)


def eight_bit_layers(model: onnx.ModelProto) -> list[str]:
    """Return the names of the float products whose weights are 8-bit integers times a scale."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and _is_eight_bit(numpy_helper.to_array(weights[node.input[1]]))
    ]


def _is_eight_bit(weight: NDArray[np.generic]) -> bool:
    if weight.ndim != 2 or weight.dtype != np.float32:
        return False
    values = np.asarray(weight, dtype=np.float64)
    largest = np.abs(values).max(axis=0)
    steps = values * (LEVELS / np.where(largest > 0, largest, 1.0))
    return bool(np.abs(steps - np.rint(steps)).max() < _WHOLE)


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    kept = onnx.GraphProto(node=nodes).node
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _drop_weights(model: onnx.ModelProto) -> None:
    """Remove constants that no node reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
