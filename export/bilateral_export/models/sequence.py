"""The long-sequence classifier: an encoder with bilateral attention and GRC over token ids.

One encoder serves the five tasks of the Long Range Arena (Tay et al., 2021): bytes of a text,
ListOps expressions, pixels of an image in reading order, and pairs of documents.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from bilateral_export.models.attention import BilateralAttention, grid_positions
from bilateral_export.models.block import NORM_EPS, Block, Mlp, Trunk
from bilateral_export.models.bounds import Classes, Depth, Heads, Tokens, Vocabulary, Width
from bilateral_export.models.family import Family, FamilyConfig
from bilateral_export.preprocessing import (
    PADDING,
    BytesPreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    Preprocessing,
)
from bilateral_export.tensors import Array, TensorSpec


class SequenceClassifierConfig(FamilyConfig):
    """Sizes and kernels of a sequence classifier.

    Attributes:
        vocabulary: Number of token ids; id 0 pads, unless the tokens are pixels.
        length: Most tokens of one document.
        grid: Height and width, where the tokens are the pixels of an image: positions are then
            two-dimensional, and nothing is padded.
        documents: 2 for a pair of documents, which the one encoder reads one after the other.
        pooling: What stands for a document: the mean of its tokens, or a class token.
    """

    family: Literal["sequence-classifier"] = "sequence-classifier"
    vocabulary: Vocabulary = 257
    length: Tokens = 4096
    grid: tuple[Tokens, Tokens] | None = None
    documents: Literal[1, 2] = 1
    dim: Width = 64
    depth: Depth = 2
    heads: Heads = 2
    hidden: Width = 128
    num_classes: Classes = 2
    pooling: Literal["mean", "class"] = "mean"

    @model_validator(mode="after")
    def _sizes_fit(self) -> SequenceClassifierConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.grid and self.grid[0] * self.grid[1] != self.length:
            raise ValueError(f"a grid of {self.grid} does not have {self.length} pixels")
        return self

    @property
    def prefix(self) -> int:
        """Prefix tokens: the class token, where that is how a document is pooled."""
        return 1 if self.pooling == "class" else 0

    @property
    def pads(self) -> bool:
        """Whether token id 0 is padding: always, unless the tokens are pixels."""
        return self.grid is None

    def check_preprocessing(self, how: Preprocessing) -> None:
        """Check that a preprocessing makes as many tokens and documents as the model takes."""
        match how:
            case PixelsPreprocessing():
                if (how.height, how.width) != self.grid:
                    raise ValueError(
                        f"the preprocessing gives {(how.height, how.width)} pixels, the model takes"
                        f" {self.grid}"
                    )
            case BytesPreprocessing() | ListOpsPreprocessing() if self.grid is None:
                if how.length > self.length:
                    raise ValueError(
                        f"the preprocessing gives up to {how.length} tokens, the model takes"
                        f" {self.length}"
                    )
                documents = how.documents if isinstance(how, BytesPreprocessing) else 1
                if documents != self.documents:
                    raise ValueError(
                        f"the preprocessing gives {documents} documents, the model takes"
                        f" {self.documents}"
                    )
            case _:
                super().check_preprocessing(how)


class SequenceClassifier(Family):
    """Token ids `[B, N]` (pairs: `[B, 2, N]`) in, logits `[B, classes]` out."""

    config: SequenceClassifierConfig

    def __init__(self, config: SequenceClassifierConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.token_embed = nn.Embedding(config.vocabulary, dim)
        self.pos_embed = nn.Parameter(torch.randn(1, config.length, dim) * 0.02)
        if config.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        tokens = config.prefix + config.length
        self.blocks = Trunk(
            Block(
                BilateralAttention(dim, config.heads, tokens, config.prefix, config.attention),
                Mlp(dim, config.hidden),
                config.residual,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        if config.documents == 2:
            self.match = nn.Sequential(nn.Linear(4 * dim, config.hidden), nn.ReLU())
        self.head = nn.Linear(config.hidden if config.documents == 2 else dim, config.num_classes)
        height, width = config.grid or (config.length, 1)
        positions = grid_positions(height, width, config.prefix)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of documents.

        Args:
            tokens: `[B, N]` or `[B, 2, N]`, int64. Every document has a token that is not padding;
                the padding follows its tokens.

        Returns:
            Logits `[B, classes]`, float32 (float64 for the FP64 reference).
        """
        documents = self.encode(tokens.flatten(0, -2) if self.config.documents == 2 else tokens)
        if self.config.documents == 2:
            u, v = documents.view(-1, 2, self.config.dim).unbind(1)
            documents = self.match(torch.cat([u, v, u * v, u - v], dim=-1))
        logits: Tensor = self.head(documents)
        return logits if logits.dtype == torch.float64 else logits.float()

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the vectors `[B, dim]` of documents `[B, N]`."""
        kept = torch.ones_like(tokens) if self.config.grid else (tokens != PADDING).long()
        x0 = self.token_embed(tokens) + self.pos_embed[:, : tokens.shape[1]]
        if self.config.prefix:
            x0 = torch.cat([self.cls_token.expand(x0.shape[0], -1, -1), x0], dim=1)
            kept = torch.cat([torch.ones_like(kept[:, :1]), kept], dim=1)
        key_bias = None
        if self.config.grid is None:
            key_bias = torch.zeros(kept.shape).masked_fill(kept == 0, float("-inf"))
        x = self.norm(self.blocks(x0, self.positions[: x0.shape[1]], key_bias))
        return x[:, 0] if self.config.prefix else _mean(x, kept)

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's inputs."""
        length: int | str = self.config.length if self.config.grid else "length"
        pair = (2,) if self.config.documents == 2 else ()
        return (TensorSpec("tokens", "int64", ("batch", *pair, length)),)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's outputs."""
        return (TensorSpec("logits", "float32", ("batch", self.config.num_classes)),)

    def corners(self) -> tuple[dict[str, int], ...]:
        """Return the longest twice, then one token, then half the longest, which is usual."""
        length = self.config.length
        if not self.config.pads:
            return super().corners()
        return (
            {"length": length},
            {"length": length},
            {"length": 1},
            {"length": max(1, length // 2)},
        )

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Return random valid inputs: documents of random lengths, padded to `length`.

        Args:
            batch: Number of inputs.
            generator: Source of randomness.
            dims: Sizes of the other dynamic dimensions, by name.
        """
        length = self.config.length if self.config.grid else dims.get("length", self.config.length)
        shape = (batch, 2, length) if self.config.documents == 2 else (batch, length)
        if self.config.grid:
            return {"tokens": generator.integers(0, self.config.vocabulary, shape)}
        tokens = generator.integers(1, self.config.vocabulary, shape)
        ends = generator.integers(1, length, shape[:-1], endpoint=True)
        ends[0] = length  # one document is not padded
        return {"tokens": np.where(np.arange(length) < ends[..., None], tokens, PADDING)}


def _mean(x: Tensor, kept: Tensor) -> Tensor:
    """Return the mean over the tokens that are kept, as a product: it accumulates in float32."""
    weights = kept.to(x.dtype) / kept.sum(dim=1, keepdim=True).to(x.dtype)
    return (weights.unsqueeze(1) @ x).squeeze(1)
