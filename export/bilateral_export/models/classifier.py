"""The image classifier: DeiT (Touvron et al., 2021) with bilateral attention and GRC."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from bilateral_export.models.attention import AttentionConfig, BilateralAttention, grid_positions
from bilateral_export.models.bounds import Classes, Depth, Features, Heads, Pixels, Ratio, Width
from bilateral_export.models.residual import GeneralizedResidual, ResidualConfig
from bilateral_export.tensors import Array, TensorSpec


class ImageClassifierConfig(BaseModel):
    """Sizes and kernels of an image classifier. The defaults are plain DeiT-tiny at 224.

    Attributes:
        position_grid: Patches along one side of the image the model was trained on, whose patch is
            the unit of the spatial kernel's coordinates; None where that is this image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["image-classifier"] = "image-classifier"
    image_size: Pixels = 224
    patch_size: Pixels = 16
    channels: Features = 3
    dim: Width = 192
    depth: Depth = 12
    heads: Heads = 3
    mlp_ratio: Ratio = 4.0
    num_classes: Classes = 1000
    distilled: bool = False
    position_grid: Pixels | None = None
    attention: AttentionConfig = AttentionConfig()
    residual: ResidualConfig = ResidualConfig()

    @model_validator(mode="after")
    def _sizes_divide(self) -> ImageClassifierConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        if int(self.dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} of dim {self.dim} leaves no hidden layer")
        return self

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def prefix(self) -> int:
        """Prefix tokens: the class token, and the distillation token where there is one."""
        return 2 if self.distilled else 1

    @property
    def tokens(self) -> int:
        """Length N of the token sequence."""
        return self.prefix + self.grid**2


class ImageModel(nn.Module):
    """What models of images share: their one input, as `backbone` sizes it."""

    backbone: ImageClassifierConfig

    def inputs(self) -> tuple[TensorSpec, ...]:
        """The exported graph's inputs."""
        c = self.backbone
        return (TensorSpec("image", "float32", ("batch", c.channels, c.image_size, c.image_size)),)

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Random valid inputs: standard normal, which is what normalised images look like."""
        shape = self.inputs()[0].with_batch(batch)
        return {"image": generator.standard_normal(shape).astype(np.float32)}


class ImageClassifier(ImageModel):
    """Images `[B, C, H, W]` in, logits `[B, classes]` out.

    Parameters carry timm's names: with plain attention and the standard residual, the weights of a
    timm or DeiT checkpoint load unchanged.
    """

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        self.config = self.backbone = config
        dim = config.dim
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, config.tokens, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes)
        if config.distilled:
            self.head_dist = nn.Linear(dim, config.num_classes)
        positions = grid_positions(config.grid, config.grid, config.prefix)
        if config.position_grid is not None:
            positions *= config.position_grid / config.grid
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """Classify preprocessed images.

        Args:
            image: `[B, C, H, W]`, float32 or wider; computed in the weights' dtype.

        Returns:
            Logits `[B, classes]`, in the image's dtype. A distilled model averages its two heads,
            as DeiT's evaluation does.
        """
        patches = self.patch_embed(image.to(self.cls_token.dtype))
        x0 = torch.cat([self._prefix(image.shape[0]), patches], dim=1) + self.pos_embed
        x = x0
        for block in self.blocks:
            x = block(x, x0, self.positions)
        x = self.norm(x)
        logits: Tensor = self.head(x[:, 0])
        if self.config.distilled:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits.to(image.dtype)

    def _prefix(self, batch: int) -> Tensor:
        if self.config.distilled:
            tokens = torch.cat([self.cls_token, self.dist_token], dim=1)
        else:
            tokens = self.cls_token
        return tokens.expand(batch, -1, -1)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The exported graph's outputs."""
        return (TensorSpec("logits", "float32", ("batch", self.config.num_classes)),)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token."""

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.channels, config.dim, kernel_size=size, stride=size)

    def forward(self, image: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, patches, dim]`, row by row."""
        return cast(Tensor, self.proj(image).flatten(2).transpose(1, 2))


class Block(nn.Module):
    """Attention and MLP, each behind layer norm and a generalized residual connection."""

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.attn = BilateralAttention(
            config.dim, config.heads, config.tokens, config.prefix, config.attention
        )
        self.residual1 = GeneralizedResidual(config.residual)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))
        self.residual2 = GeneralizedResidual(config.residual)

    def forward(self, x: Tensor, x0: Tensor, positions: Tensor) -> Tensor:
        """Tokens `[B, N, dim]` to tokens; `x0` are the embedded tokens before the first block."""
        x = self.residual1(x, x0, lambda u: self.attn(self.norm1(u), positions))
        return cast(Tensor, self.residual2(x, x0, lambda u: self.mlp(self.norm2(u))))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` to `[..., dim]`."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))
