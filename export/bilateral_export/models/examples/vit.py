"""A ViT as timm writes it, with its attention replaced: an image classifier."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilateral_export import (
    ImagePreprocessing,
    ModelDefinition,
    TensorSpec,
    grid_positions,
    replace_attention,
)

SIZE, PATCH, DIM, HEADS, DEPTH = 32, 8, 48, 3, 2
CLASSES = ("cat", "dog", "owl", "fox", "elk")


class Attention(nn.Module):
    """Plain attention with the parts of timm's; with timm installed, this is timm's own class."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens."""
        batch, tokens, dim = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        heads = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4).unbind(0))
        return cast(Tensor, self.proj(heads.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the next tokens."""
        x = x + self.attn(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Patches, a class token, blocks, and a head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + 1, DIM) * 0.02)
        self.blocks = nn.Sequential(*(Block(DIM, HEADS) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        self.head = nn.Linear(DIM, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of images `[B, 3, 32, 32]`."""
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), patches], dim=1)
        x = self.norm(self.blocks(tokens + self.pos_embed))
        return cast(Tensor, self.head(x[:, 0]))


def build() -> ModelDefinition:
    """Return the ViT with bilateral attention: image distance and token distance in one kernel."""
    model = VisionTransformer()
    # Weights keep their names. The class token has no position: it sees the patches by their
    # tokens alone.
    replace_attention(
        model,
        range_kernel="gaussian",
        positions=grid_positions(SIZE // PATCH, SIZE // PATCH, 1),
        bandwidth=(0.7, 2.0),
        prefix=1,
    )
    return ModelDefinition(
        module=model,
        inputs=[TensorSpec("image", "float32", ("batch", 3, SIZE, SIZE))],
        outputs=["logits"],
        labels=CLASSES,
        preprocessing=ImagePreprocessing(
            height=SIZE, width=SIZE, resize=36, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
    )
