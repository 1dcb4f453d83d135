"""Integer products: linear layers on 8-bit weights and activations.

A layer's input becomes uint8 with one scale and zero point, which were measured before and are
constants, so that an item's answer does not depend on its neighbours in a batch; the weight has one
scale per column (int8, symmetric). These are operators of the ONNX standard, which ONNX Runtime's
CPU provider fuses; OpenVINO wants Q/DQ nodes in their place. The lowering's rewrites know float
products, so that a quantised file is lowered in three steps: products become float ones on the
numbers that the integers stand for, the rewrites run, and products whose operands are 8-bit numbers
become integer ones, or get Q/DQ nodes. A rewrite scales whole columns, or pads them with zeros, so
that the integers of a column stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bilateral_export.lowering.graph_edit import drop_unused
from bilateral_export.lowering.subgraphs import needed_for

LEVELS = 127
# Of the distance to a whole number: float32 products of a scale and an integer of 7 bits are off by
# 1e-5, weights that are no integers by up to a half.
_WHOLE = 1e-3

Range = tuple[float, float]


def quantise_columns(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return integers `[K, N]` and scales `[N]` of a weight: symmetric, one scale per column."""
    largest = np.abs(weight).max(axis=0)
    scale = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def quantise_products(model: onnx.ModelProto, layers: Mapping[str, Range]) -> None:
    """Give the named MatMul nodes operands of 8 bits, in place: Q/DQ before them, a rounded weight.

    Args:
        model: The model.
        layers: The smallest and largest value that each reads, by the node's name.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    added: dict[str, NDArray[np.generic]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.name in layers:
            source, weight = node.input
            if f"{source}/scale" not in added:
                added |= _scale(source, layers[node.name])
                nodes += _quantise(source, node)
            integers, scale = quantise_columns(numpy_helper.to_array(weights[weight]))
            added[f"{weight}/rounded"] = integers * scale
            node.input[0], node.input[1] = f"{source}/rounded", f"{weight}/rounded"
        nodes.append(node)
    _replace(model, nodes, added)


def to_integer_products(model: onnx.ModelProto) -> int:
    """Replace MatMul nodes whose operands are 8-bit numbers by integer products, in place.

    The last node of each product keeps the node's name and output.

    Returns:
        How many.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    added: dict[str, NDArray[np.generic]] = {}
    nodes: list[onnx.NodeProto] = []
    copied: set[str] = set()
    count = 0
    for node in model.graph.node:
        moves, before = (
            _behind_moves(node.input[0], made) if node.op_type == "MatMul" else ([], None)
        )
        if before is None or node.input[1] not in weights:
            nodes.append(node)
            continue
        weight, output = node.input[1], node.output[0]
        values = numpy_helper.to_array(weights[weight])
        if not _is_eight_bit(values):
            nodes.append(node)
            continue
        integers, scale = quantise_columns(values)
        added[f"{weight}/int8"] = integers
        activation = numpy_helper.to_array(weights[before.input[1]])
        added[f"{output}/scale"] = (scale * activation).astype(np.float32)
        integer, cast = f"{output}/int32", f"{output}/float"
        source = before.input[0]
        for move in moves:  # of the 8-bit numbers instead
            moved = f"{move.output[0]}/uint8"
            if moved not in copied:
                copied.add(moved)
                nodes.append(_made(move.op_type, [source, *move.input[1:]], moved, move))
                nodes[-1].attribute.extend(move.attribute)
            source = moved
        product = [source, f"{weight}/int8", before.input[2]]
        nodes += [
            _made("MatMulInteger", product, integer, node),
            _made("Cast", [integer], cast, node, to=TensorProto.FLOAT),
            _made("Mul", [cast, f"{output}/scale"], output, node),
        ]
        nodes[-1].name = node.name
        count += 1
    _replace(model, nodes, added)
    return count


def to_qdq_products(model: onnx.ModelProto) -> int:
    """Keep the weights of such MatMul nodes as integers, dequantised before the product, in place.

    OpenVINO computes a product of dequantised operands in integers.

    Returns:
        How many.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    added: dict[str, NDArray[np.generic]] = {}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            weight = node.input[1]
            values = numpy_helper.to_array(weights[weight])
            if _behind_moves(node.input[0], made)[1] is not None and _is_eight_bit(values):
                integers, scale = f"{weight}/int8", f"{weight}/columns"
                if integers not in added:
                    added[integers], added[scale] = quantise_columns(values)
                    dequantised = f"{weight}/dequantised"
                    nodes.append(
                        _made("DequantizeLinear", [integers, scale], dequantised, node, axis=1)
                    )
                node.input[1] = f"{weight}/dequantised"
                count += 1
        nodes.append(node)
    _replace(model, nodes, added)
    return count


def to_float_products(model: onnx.ModelProto) -> int:
    """Replace integer products by float ones on the numbers that the integers stand for, in place.

    Returns:
        How many.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    users = {name: node for node in model.graph.node for name in node.input}
    new: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    added: dict[str, NDArray[np.generic]] = {}
    for node in model.graph.node:
        quantise = made.get(node.input[0]) if node.op_type == "MatMulInteger" else None
        if quantise is None or quantise.op_type != "QuantizeLinear":
            continue
        cast = users[node.output[0]]
        last = users[cast.output[0]]
        source, weight = quantise.input[0], node.input[1].removesuffix("/int8")
        activation = numpy_helper.to_array(constants[quantise.input[1]])
        scale = numpy_helper.to_array(constants[last.input[1]]) / activation
        added[weight] = np.multiply(numpy_helper.to_array(constants[node.input[1]]), scale)
        rounded, output = f"{source}/rounded", last.output[0]
        back = _made("DequantizeLinear", [node.input[0], *quantise.input[1:]], rounded, quantise)
        product = _made("MatMul", [rounded, weight], output, last)
        product.name = last.name
        first = rounded not in gone
        new[output] = [*([back] if first else []), product]
        gone |= {node.output[0], cast.output[0], rounded}
    if not new:  # a float file, which is left as it is
        return 0
    nodes = [
        made_now
        for node in model.graph.node
        if node.output[0] not in gone
        for made_now in new.get(node.output[0], [node])
    ]
    _replace(model, nodes, added)
    return len(new)


def _behind_moves(
    name: str, made: Mapping[str, onnx.NodeProto]
) -> tuple[list[onnx.NodeProto], onnx.NodeProto | None]:
    """Return the nodes that only move a tensor's numbers, first one first, and what made them.

    What made them is None where that is no DequantizeLinear.
    """
    moves: list[onnx.NodeProto] = []
    node = made.get(name)
    while node is not None and node.op_type in ("Transpose", "Reshape"):
        moves.insert(0, node)
        node = made.get(node.input[0])
    return moves, node if node is not None and node.op_type == "DequantizeLinear" else None


def _scale(source: str, found: Range) -> dict[str, NDArray[np.generic]]:
    """Return the constants that make a range, with zero in it, 256 levels."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return {
        f"{source}/scale": np.asarray(scale),
        f"{source}/zero": np.asarray(np.clip(np.rint(-low / scale), 0, 255), dtype=np.uint8),
    }


def _quantise(source: str, like: onnx.NodeProto) -> list[onnx.NodeProto]:
    how = [f"{source}/scale", f"{source}/zero"]
    return [
        _made("QuantizeLinear", [source, *how], f"{source}/uint8", like),
        _made("DequantizeLinear", [f"{source}/uint8", *how], f"{source}/rounded", like),
    ]


def _made(
    kind: str, inputs: list[str], output: str, like: onnx.NodeProto, **attributes: Any
) -> onnx.NodeProto:
    node = helper.make_node(kind, inputs, [output], name=output, **attributes)
    node.metadata_props.extend(like.metadata_props)
    return node


def _replace(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], added: Mapping[str, NDArray[np.generic]]
) -> None:
    """Give a model other nodes and constants; those that nothing reads any more go."""
    read, _ = needed_for((value.name for value in model.graph.output), nodes)
    kept = onnx.GraphProto(node=read).node
    del model.graph.node[:]
    model.graph.node.extend(kept)
    known = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in added.items() if name not in known
    )
    drop_unused(model)


def _is_eight_bit(weight: NDArray[np.generic]) -> bool:
    if weight.ndim != 2 or weight.dtype != np.float32:
        return False
    values = np.asarray(weight, dtype=np.float64)
    largest = np.abs(values).max(axis=0)
    steps = values * (LEVELS / np.where(largest > 0, largest, 1.0))
    return bool(np.abs(steps - np.rint(steps)).max() < _WHOLE)
