"""The segmenter (Strudel et al., 2021): a DeiT encoder and a mask-transformer decoder.

Both with bilateral attention and GRC. The decoder reads the patches together with one learned token
per class; a patch belongs to a class as far as their vectors agree.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bilateral_export.models.attention import AttentionConfig, BilateralAttention, grid_positions
from bilateral_export.models.block import ACTIVATIONS, NORM_EPS, Activation, Block, Mlp, Trunk
from bilateral_export.models.bounds import Depth, Epsilon, Heads, Pixels, Ratio, Width
from bilateral_export.models.classifier import ImageClassifierConfig, ImageEncoder, ImageModel
from bilateral_export.models.family import FamilyConfig
from bilateral_export.preprocessing import Preprocessing, SegmentationPreprocessing
from bilateral_export.tensors import TensorSpec


class SegmenterConfig(FamilyConfig):
    """Sizes and kernels of a segmenter. The defaults are plain Seg-T-Mask/16 on ADE20K.

    Attributes:
        image_size: Side of the square window the model sees.
        distilled: Whether the encoder has a distillation token, as the published ones from DeiT.
        activation: Between the two layers of the MLPs.
        layer_norm_epsilon: Of the layer norms of encoder and decoder; that of the masks is 1e-5.
        num_classes: At most 256, because a class is one byte.
        decoder_depth: Blocks of the decoder, as wide as the encoder's.
        decoder_attention: The decoder's kernels; None: the encoder's.
    """

    family: Literal["segmenter"] = "segmenter"
    image_size: Pixels = 512
    patch_size: Pixels = 16
    dim: Width = 192
    depth: Depth = 12
    heads: Heads = 3
    mlp_ratio: Ratio = 4.0
    distilled: bool = False
    activation: Activation = "gelu"
    layer_norm_epsilon: Epsilon = NORM_EPS
    decoder_depth: Depth = 2
    num_classes: int = Field(default=150, gt=0, le=256)
    decoder_attention: AttentionConfig | None = None

    @model_validator(mode="after")
    def _sizes_divide(self) -> SegmenterConfig:
        _ = self.backbone
        return self

    @property
    def backbone(self) -> ImageClassifierConfig:
        """The encoder as an image classifier, whose sizes and names it shares."""
        return ImageClassifierConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            distilled=self.distilled,
            activation=self.activation,
            layer_norm_epsilon=self.layer_norm_epsilon,
            attention=self.attention,
            residual=self.residual,
        )

    def check_preprocessing(self, how: Preprocessing) -> None:
        """Check that a preprocessing cuts windows of this size and has a colour per class."""
        if not isinstance(how, SegmentationPreprocessing):
            return super().check_preprocessing(how)
        if how.window != self.image_size:
            raise ValueError(
                f"the preprocessing cuts windows of {how.window} pixels, the model takes"
                f" {self.image_size}"
            )
        if how.stride > how.window:
            raise ValueError(f"windows of {how.window} pixels every {how.stride} leave gaps")
        if len(how.palette) < self.num_classes:
            raise ValueError(
                f"the preprocessing has {len(how.palette)} colours, the model"
                f" {self.num_classes} classes"
            )
        return None


class Segmenter(ImageModel):
    """Images `[B, 3, S, S]` in, the class of each pixel `[B, S, S]` out, one byte each."""

    decides: ClassVar[bool] = True
    config: SegmenterConfig

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config, self.backbone = config, config.backbone
        self.encoder = ImageEncoder(config.backbone)
        self.decoder = MaskTransformer(config)

    def forward(self, image: Tensor) -> Tensor:
        """Return the class of every pixel of preprocessed images.

        Args:
            image: `[B, 3, S, S]`, float32 or wider; computed in the weights' dtype.

        Returns:
            Class indices `[B, S, S]`, uint8.
        """
        return self.decide(self.scores(image))

    def scores(self, *inputs: Tensor) -> Tensor:
        """Return the score of every class for every pixel, `[B, classes, S, S]`."""
        size = self.config.image_size
        masks = self.masks(*inputs)
        return F.interpolate(masks, size=(size, size), mode="bilinear", align_corners=False)

    def decide(self, scores: Tensor) -> Tensor:
        """Return the best class of each pixel, `[B, S, S]`, uint8."""
        return scores.argmax(dim=1).to(torch.uint8)

    def masks(self, image: Tensor) -> Tensor:
        """Return the score of every class for every patch, `[B, classes, grid, grid]`."""
        # The class and distillation tokens are not passed on.
        patches = self.encoder.encode(image)[:, self.backbone.prefix :]
        scores: Tensor = self.decoder(patches)
        return scores.transpose(1, 2).reshape(-1, self.config.num_classes, *self.backbone.grid)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's outputs."""
        size = self.config.image_size
        return (TensorSpec("classes", "uint8", ("batch", size, size)),)


class MaskTransformer(nn.Module):
    """Patches to class scores; parameter names are the published Segmenter's.

    The class tokens come first, as prefix tokens: they have no position. (Attention does not mind
    where they stand.)
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        dim, classes, grid = config.dim, config.num_classes, config.backbone.grid
        eps = config.layer_norm_epsilon
        self.classes = classes
        self.proj_dec = nn.Linear(dim, dim)
        self.cls_emb = nn.Parameter(torch.randn(1, classes, dim) * 0.02)
        attention = config.decoder_attention or config.attention
        self.blocks = Trunk(
            Block(
                BilateralAttention(
                    dim, config.heads, classes + grid[0] * grid[1], classes, attention
                ),
                Mlp(dim, int(dim * config.mlp_ratio), ACTIVATIONS[config.activation]),
                config.residual,
                eps,
            )
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=eps)
        self.proj_patch = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)
        self.proj_classes = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)
        self.mask_norm = nn.LayerNorm(classes)
        self.register_buffer("positions", grid_positions(*grid, classes), persistent=False)
        self.positions: Tensor

    def forward(self, patches: Tensor) -> Tensor:
        """Return the scores `[B, N, classes]` of patches `[B, N, dim]`."""
        cls_emb = self.cls_emb.expand(patches.shape[0], -1, -1)
        x0 = torch.cat([cls_emb, self.proj_dec(patches)], dim=1)
        x = self.decoder_norm(self.blocks(x0, self.positions))
        patch_vectors = F.normalize(x[:, self.classes :] @ self.proj_patch, dim=-1)
        class_vectors = F.normalize(x[:, : self.classes] @ self.proj_classes, dim=-1)
        return cast(Tensor, self.mask_norm(patch_vectors @ class_vectors.transpose(1, 2)))
