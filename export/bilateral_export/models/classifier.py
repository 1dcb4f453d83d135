"""The image classifier: DeiT (Touvron et al., 2021) with bilateral attention and GRC."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from bilateral_export.models.attention import AttentionConfig, BilateralAttention, grid_positions
from bilateral_export.models.block import NORM_EPS, Block, Mlp, PatchEmbed, Trunk
from bilateral_export.models.bounds import Classes, Depth, Features, Heads, Pixels, Ratio, Width
from bilateral_export.models.residual import ResidualConfig
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


class ImageEncoder(nn.Module):
    """DeiT without its heads: images `[B, C, H, W]` in, tokens `[B, N, dim]` out.

    Parameters carry timm's names: with plain attention and the standard residual, the weights of a
    timm or DeiT checkpoint load unchanged.
    """

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        dim = config.dim
        self.distilled = config.distilled
        self.patch_embed = PatchEmbed(config.channels, config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, config.tokens, dim) * 0.02)
        self.blocks = Trunk(
            Block(
                BilateralAttention(
                    dim, config.heads, config.tokens, config.prefix, config.attention
                ),
                Mlp(dim, int(dim * config.mlp_ratio)),
                config.residual,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        positions = grid_positions(config.grid, config.grid, config.prefix)
        if config.position_grid is not None:
            positions *= config.position_grid / config.grid
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def encode(self, image: Tensor) -> Tensor:
        """Return the tokens `[B, N, dim]` of images `[B, C, H, W]`, in the weights' dtype."""
        patches = self.patch_embed(image.to(self.cls_token.dtype))
        prefix: Tensor = self.cls_token
        if self.distilled:
            prefix = torch.cat([prefix, self.dist_token], dim=1)
        x0 = torch.cat([prefix.expand(image.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        return cast(Tensor, self.norm(self.blocks(x0, self.positions)))


class ImageClassifier(ImageEncoder, ImageModel):
    """Images `[B, C, H, W]` in, logits `[B, classes]` out."""

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__(config)
        self.config = self.backbone = config
        self.head = nn.Linear(config.dim, config.num_classes)
        if config.distilled:
            self.head_dist = nn.Linear(config.dim, config.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Classify preprocessed images.

        Args:
            image: `[B, C, H, W]`, float32 or wider; computed in the weights' dtype.

        Returns:
            Logits `[B, classes]`, in the image's dtype. A distilled model averages its two heads,
            as DeiT's evaluation does.
        """
        x = self.encode(image)
        logits: Tensor = self.head(x[:, 0])
        if self.config.distilled:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits.to(image.dtype)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The exported graph's outputs."""
        return (TensorSpec("logits", "float32", ("batch", self.config.num_classes)),)
