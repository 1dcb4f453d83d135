"""A model family defined outside the package: the class of every pixel, of the pixels themselves.

What a user would write: a configuration, a model, one call to `register`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bilateral_export.models.attention import AttentionConfig, BilateralAttention, grid_positions
from bilateral_export.models.block import Block, Mlp, Trunk
from bilateral_export.models.family import Family, FamilyConfig
from bilateral_export.models.registry import register
from bilateral_export.tensors import Array, TensorSpec


class PixelLabelsConfig(FamilyConfig):
    family: Literal["pixel-labels"] = "pixel-labels"
    side: int = 6
    dim: int = 16
    heads: int = 2
    num_classes: int = 3
    attention: AttentionConfig = AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian")


class PixelLabels(Family):
    """Grey images `[B, 1, S, S]` in, labels `[B, S, S]`, int32, out."""

    decides: ClassVar[bool] = True
    config: PixelLabelsConfig

    def __init__(self, config: PixelLabelsConfig) -> None:
        super().__init__()
        self.config = config
        dim, tokens = config.dim, config.side**2
        self.embed = nn.Linear(1, dim)
        attention = BilateralAttention(dim, config.heads, tokens, 0, config.attention)
        self.blocks = Trunk([Block(attention, Mlp(dim, 2 * dim), config.residual)])
        self.head = nn.Linear(dim, config.num_classes)
        self.register_buffer("positions", grid_positions(config.side, config.side, 0), False)
        self.positions: Tensor

    def forward(self, image: Tensor) -> Tensor:
        return self.decide(self.scores(image))

    def scores(self, *inputs: Tensor) -> Tensor:
        (image,) = inputs
        pixels = image.to(self.embed.weight.dtype).flatten(1).unsqueeze(-1)
        scores: Tensor = self.head(self.blocks(self.embed(pixels), self.positions))
        side = self.config.side
        return scores.transpose(1, 2).reshape(-1, self.config.num_classes, side, side)

    def decide(self, scores: Tensor) -> Tensor:
        return scores.argmax(1).to(torch.int32)

    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("image", "float32", ("batch", 1, self.config.side, self.config.side)),)

    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("labels", "int32", ("batch", self.config.side, self.config.side)),)

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        shape = self.inputs()[0].with_batch(batch)
        return {"image": generator.standard_normal(shape).astype(np.float32)}


register(PixelLabelsConfig, PixelLabels)
