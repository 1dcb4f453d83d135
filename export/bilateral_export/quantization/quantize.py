"""The 8-bit forms of an exported file: which layers, smoothed or not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from bilateral_export.artifact import load_graph
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file
from bilateral_export.lowering.graph_edit import copied, drop_unused
from bilateral_export.lowering.integer_products import quantise_products, to_integer_products
from bilateral_export.metadata import LOWERING_KEY
from bilateral_export.quantization.layers import (
    Feeds,
    LinearLayer,
    Ranges,
    channel_ranges,
    linear_layers,
)
from bilateral_export.quantization.smoothing import smooth


@dataclass(frozen=True)
class Recipe:
    """How to quantise.

    Attributes:
        smoothed: Whether activations are smoothed first.
        float_layers: Names of the layers that stay float.
    """

    smoothed: bool = False
    float_layers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Source:
    """A float32 file to quantise.

    Attributes:
        model: Its graph.
        layers: Its linear layers, in graph order.
        feeds: Typical inputs, from which the activations' ranges are read.
    """

    model: onnx.ModelProto
    layers: tuple[LinearLayer, ...]
    feeds: Feeds

    @cached_property
    def ranges(self) -> Ranges:
        """The ranges of what the layers read."""
        return channel_ranges(self.model, self.layers, self.feeds)

    @cached_property
    def smoothed(self) -> tuple[onnx.ModelProto, Ranges]:
        """The same function, with ranges moved from activations to weights, and what is left."""
        made = copied(self.model)
        ranges = smooth(made, self.layers, self.ranges)
        drop_unused(made)
        return made, ranges


def read_source(path: Path, feeds: Feeds) -> Source:
    """Read a file from `bilateral export`.

    Raises:
        UserError: It was lowered, or has no float32 linear layer with constant weights.
    """
    model = load_graph(path)
    if any(entry.key == LOWERING_KEY for entry in model.metadata_props):
        raise UserError(f"{path} was lowered already", "Start from the exported file.")
    layers = tuple(linear_layers(model))
    if not layers:
        raise UserError(
            f"{path} has no float32 linear layer", "Give an fp32 file of `bilateral export`."
        )
    return Source(model, layers, feeds)


def quantised(source: Source, recipe: Recipe, only: str | None = None) -> onnx.ModelProto:
    """Return a file's 8-bit form; with `only`, that layer alone is in 8 bits.

    Attention with its body, norms and everything between the layers stay float, and the attention
    nodes stay what they are.
    """
    model, ranges = source.smoothed if recipe.smoothed else (source.model, source.ranges)
    made = copied(model)
    quantise_products(
        made,
        {
            layer.name: (float(ranges[layer.source][0].min()), float(ranges[layer.source][1].max()))
            for layer in source.layers
            if (layer.name not in recipe.float_layers if only is None else layer.name == only)
        },
    )
    to_integer_products(made)
    return made


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a quantised model.

    Raises:
        UserError: The file cannot be written.
    """
    onnx.checker.check_model(model)
    with atomic_file(path) as temporary:
        onnx.save(model, temporary)
