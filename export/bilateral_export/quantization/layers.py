"""Linear layers that can be quantised, and the range of activations in each of their channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from bilateral_export.errors import UserError
from bilateral_export.lowering.gate import opened
from bilateral_export.tensors import Array

Feeds = Sequence[Mapping[str, Array]]
Ranges = dict[str, NDArray[np.float32]]
"""Smallest and largest value of each channel `[2, K]`, by the name of what a layer reads."""


@dataclass(frozen=True)
class LinearLayer:
    """One MatMul with a constant float32 weight.

    Attributes:
        name: The node's.
        source: The tensor it reads, `[..., K]`.
    """

    name: str
    source: str


def linear_layers(model: onnx.ModelProto) -> list[LinearLayer]:
    """Return a model's linear layers in graph order.

    Attention's own products have no constant weight, the patch embedding is a convolution, and the
    classifier's head is a Gemm of under one percent of the work: they stay float.
    """
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }
    return [
        LinearLayer(node.name, node.input[0])
        for node in model.graph.node
        if node.op_type == "MatMul" and not node.domain and node.input[1] in weights
    ]


def channel_ranges(model: onnx.ModelProto, layers: Iterable[LinearLayer], feeds: Feeds) -> Ranges:
    """Run a model on inputs in ONNX Runtime and return the ranges of what its layers read.

    Raises:
        UserError: There is no input.
    """
    if not feeds:
        raise UserError("there is no input to calibrate with", "Give at least one item.")
    names = list(dict.fromkeys(layer.source for layer in layers))
    ranges: Ranges = {}
    with opened(model, outputs=names) as session:
        for feed in feeds:
            for name, value in zip(names, session.run(names, dict(feed)), strict=True):
                rows = value.reshape(-1, value.shape[-1])
                found = np.stack([rows.min(axis=0), rows.max(axis=0)])
                low, high = ranges.get(name, found)
                ranges[name] = np.stack([np.minimum(low, found[0]), np.maximum(high, found[1])])
    return ranges
