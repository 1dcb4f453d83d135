"""What a home's own code fixes and its weights do not show, each with its source.

A file of weights alone says neither the epsilon of its layer norms nor the number of heads; the
library that wrote it does, in its code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bilateral_export.checkpoint.datasets.imagenet import MEAN, STD
from bilateral_export.models.free_grid import Resampling
from bilateral_export.preprocessing import ImagePreprocessing


@dataclass(frozen=True)
class Fixed:
    """What the code of one home fixes.

    Attributes:
        epsilon: Of every layer norm.
        source: Where the code says so.
        resampling: How it interpolates learned positions to another grid.
        activation: Of every MLP.
    """

    epsilon: float
    source: str
    resampling: Resampling = "bicubic"
    activation: str = "gelu"


_HF = "transformers 5.24"
FIXED: dict[str, Fixed] = {
    "vit": Fixed(1e-12, f"{_HF}, ViTConfig"),
    "deit": Fixed(1e-12, f"{_HF}, DeiTConfig"),
    "dinov2": Fixed(1e-6, f"{_HF}, Dinov2Config"),
    "dinov2_with_registers": Fixed(1e-6, f"{_HF}, Dinov2WithRegistersConfig", "bicubic-antialias"),
    "timm": Fixed(1e-6, "timm 1.0.31, VisionTransformer's default norm_layer", "bicubic-antialias"),
    # Every timm vit_*_clip_* has pre_norm, and norm_layer=partial(LayerNorm, eps=1e-5).
    "timm-clip": Fixed(1e-5, "timm 1.0.31, its models with pre_norm (CLIP)", "bicubic-antialias"),
    "facebookresearch-dinov2": Fixed(1e-6, "dinov2's vision_transformer.py"),
    # interpolate_embeddings has align_corners=True.
    "torchvision": Fixed(
        1e-6, "torchvision 0.28, VisionTransformer's norm_layer", "bicubic-corners"
    ),
    # nn.LayerNorm(dim) in segm/model/vit.py, blocks.py and decoder.py: torch's default.
    "segmenter": Fixed(1e-5, "rstrudel/segmenter, nn.LayerNorm's default"),
}

# Channels of one head, where they are not 64: ViT-so400m, huge, giant, gigantic (timm's
# vision_transformer.py, torchvision's vit_h_14, Hugging Face's converted checkpoints).
HEAD_WIDTHS = {1152: 72, 1280: 80, 1408: 88, 1664: 104}
HEAD_WIDTH = 64
# Names of timm whose models have another number: I-JEPA's base, and SigLIP's giantopt.
_HEADS = {r"^vit_base_patch16_gap_224": 16, r"^vit_giantopt_": 16}


def heads_of(dim: int, architecture: str | None = None) -> int | None:
    """Number of heads of every published ViT of this width; None where the rule has no answer."""
    for name, heads in _HEADS.items():
        if re.search(name, architecture or ""):
            return heads
    width = HEAD_WIDTHS.get(dim, HEAD_WIDTH)
    return dim // width if dim % width == 0 else None


# Names of timm 1.0.31 whose models have another activation.
_ACTIVATIONS = {
    r"quickgelu": "quick_gelu",
    r"^vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_": "gelu_tanh",
    r"^vit_large_patch16_siglip_(gap_)?512$": "gelu_tanh",
}


def timm_activation(architecture: str | None) -> str | None:
    """The activation that the name of an architecture tells; None: that of the others."""
    names = _ACTIVATIONS.items()
    return next((kind for name, kind in names if re.search(name, architecture or "")), None)


_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Architecture names of timm 1.0.31, mean, deviation, share of the resized image that is kept at 224
# and below (above: the second); all bicubic. From each model's default_cfg.
_TIMM: tuple[tuple[str, tuple[float, ...], tuple[float, ...], float, float], ...] = (
    (r"^deit3?_", MEAN, STD, 0.9, 1.0),
    (r"_dinov2$|^vit_(huge|giant)_patch\d+_gap_|^vit_small_patch8_224", MEAN, STD, 0.9, 1.0),
    (r"_clip_", _CLIP_MEAN, _CLIP_STD, 0.9, 1.0),
    (r"^vit_(small|base|large|tiny)_patch\d+_(224|384)$", _HALF, _HALF, 0.9, 1.0),
    (r"^vit_(giant|gigantic|huge)_patch14_224$", _HALF, _HALF, 0.9, 1.0),
)


def timm_preprocessing(architecture: str, size: tuple[int, int]) -> ImagePreprocessing | None:
    """The evaluation that timm's default configuration of an architecture names; None: unknown."""
    for pattern, mean, std, small, large in _TIMM:
        if re.search(pattern, architecture):
            crop = small if max(size) <= 256 else large
            return ImagePreprocessing(
                height=size[0],
                width=size[1],
                resize=int(min(size) / crop),
                interpolation="bicubic",
                mean=mean,
                std=std,
            )
    return None


# IMAGENET1K_V1 of torchvision 0.28 (ViT_B_16_Weights and so on): bilinear, this shorter side.
_TORCHVISION_RESIZE = {(768, 16): 256, (768, 32): 256, (1024, 16): 242, (1024, 32): 256}


def torchvision_preprocessing(dim: int, patch: int, size: int) -> ImagePreprocessing | None:
    """The evaluation of torchvision's IMAGENET1K_V1 weights of this size; None: there are none."""
    resize = _TORCHVISION_RESIZE.get((dim, patch))
    if resize is None or size != 224:
        return None
    return ImagePreprocessing(
        height=size, width=size, resize=resize, interpolation="bilinear", mean=MEAN, std=STD
    )
