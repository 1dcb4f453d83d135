"""Activation smoothing: a channel's range moves from what a linear layer reads into its weight.

Channel j of a layer's input is divided by s_j and row j of its weight is multiplied by s_j, so that
the product stays what it was. The division costs nothing where a constant comes before: the scale
and bias of a layer norm, or, for the layer behind an attention, the columns of the values'
projection, since an attention's output is a weighted mean of values, channel by channel. Source:
Xiao et al. (2023), SmoothQuant, with its s_j = max|X_j|^0.5 / max|W_j|^0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bilateral_export.lowering.attention_pattern import (
    Graph,
    PreconditionError,
    attention_nodes,
    read_attention,
)
from bilateral_export.quantization.layers import LinearLayer, Ranges

_STRENGTH = 0.5
_LEAST = 1e-5

Factors = NDArray[np.float32]


@dataclass(frozen=True)
class _Place:
    """Constants that a channel scale can be divided out of.

    Attributes:
        node: The node that reads them.
        inputs: Their positions among its inputs.
        start: The first column of the channels.
    """

    node: onnx.NodeProto
    inputs: tuple[int, ...]
    start: int = 0


def smooth(model: onnx.ModelProto, layers: Sequence[LinearLayer], ranges: Ranges) -> Ranges:
    """Smooth every layer whose input a constant scales, in place; return the new ranges.

    Ensures: the model computes the same function; constants that other nodes read are not changed.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    by_name = {node.name: node for node in model.graph.node}
    smoothed = dict(ranges)
    for source, places in _sources(model):
        readers = [layer for layer in layers if layer.source == source]
        users = [node for node in model.graph.node if source in node.input]
        if not readers or len(users) != len(readers):
            continue
        rows = np.max(
            [
                np.abs(numpy_helper.to_array(weights[by_name[each.name].input[1]])).max(axis=1)
                for each in readers
            ],
            axis=0,
        )
        factors = _factors(np.abs(ranges[source]).max(axis=0), rows)
        for place in places:
            for position in place.inputs:
                _scale(model, weights, place.node, position, 1 / factors, place.start, axis=-1)
        for each in readers:
            _scale(model, weights, by_name[each.name], 1, factors, 0, axis=0)
        smoothed[source] = ranges[source] / factors
    return smoothed


def _factors(activations: Factors, rows: Factors) -> Factors:
    usable = (activations > _LEAST) & (rows > _LEAST)
    quotient = np.where(usable, activations, 1.0) / np.where(usable, rows, 1.0)
    return np.asarray(np.where(usable, quotient**_STRENGTH, 1.0), dtype=np.float32)


def _sources(model: onnx.ModelProto) -> Iterator[tuple[str, list[_Place]]]:
    """Yield the tensors that constants scale channel by channel, and those constants."""
    graph = Graph(model)
    for node in model.graph.node:
        constants = node.input[1:]
        if node.op_type == "LayerNormalization" and all(map(graph.is_float32, constants)):
            yield node.output[0], [_Place(node, tuple(range(1, len(node.input))))]
    for node in attention_nodes(model):
        try:
            found = read_attention(model, graph, node)
        except PreconditionError:  # a causal model's cache reads the values too
            continue
        product = next(each for each in found.replaced if each.op_type == "MatMul")
        bias = next(each for each in found.replaced if each.op_type == "Add")
        start = 2 * found.heads * found.head_dim
        yield found.merged, [_Place(product, (1,), start), _Place(bias, (1,), start)]


def _scale(
    model: onnx.ModelProto,
    weights: dict[str, onnx.TensorProto],
    node: onnx.NodeProto,
    position: int,
    factors: Factors,
    start: int,
    axis: int,
) -> None:
    """Multiply part of a node's constant; it gets a constant of its own."""
    value = numpy_helper.to_array(weights[node.input[position]]).copy()
    if axis == 0:
        value *= factors[:, None]
    else:
        value[..., start : start + len(factors)] *= factors
    name = f"{node.name}/smoothed.{position}"
    if name not in weights:
        weights[name] = model.graph.initializer.add()
    weights[name].CopyFrom(numpy_helper.from_array(value, name))
    node.input[position] = name
