"""Models by name, and what every family has to offer."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from bilateral_export.errors import UserError
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifier, ImageClassifierConfig
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.tensors import TensorSpec

# A union once there are more families; pydantic tells them apart by their `family` field.
ModelConfig = ImageClassifierConfig


class Exportable(Protocol):
    """What the exporter, the runners and the checkpoint reader need of a model."""

    config: ModelConfig

    def inputs(self) -> tuple[TensorSpec, ...]:
        """The exported graph's inputs, in the order of `forward`'s arguments."""

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The exported graph's outputs, in the order `forward` returns them."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the model."""


def build(config: ModelConfig) -> nn.Module:
    """Build the model of a configuration, with fresh weights, in evaluation mode.

    The result is an `nn.Module` that is also `Exportable`.
    """
    return ImageClassifier(config).eval()


def exportable(model: nn.Module) -> Exportable:
    """The same model, typed by what the exporter needs of it."""
    return cast(Exportable, model)


_BILATERAL = AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian")
_LEARNED = ResidualConfig(preset="standard", learned=True)
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def _deit(size: str, distilled: bool, bilateral: bool, image_size: int) -> ImageClassifierConfig:
    dim, heads = _SIZES[size]
    return ImageClassifierConfig(
        image_size=image_size,
        dim=dim,
        heads=heads,
        distilled=distilled,
        attention=_BILATERAL if bilateral else AttentionConfig(),
        residual=_LEARNED if bilateral else ResidualConfig(),
    )


def _digits(bilateral: bool, learned_residual: bool) -> ImageClassifierConfig:
    return ImageClassifierConfig(
        image_size=8,
        patch_size=2,
        channels=1,
        dim=48,
        depth=4,
        heads=3,
        num_classes=10,
        attention=(
            _BILATERAL.model_copy(update={"bandwidth": (0.7, 2.0)})
            if bilateral
            else AttentionConfig()
        ),
        residual=_LEARNED if learned_residual else ResidualConfig(),
    )


# Plain DeiT under the names its own training scripts use; the bilateral ones beside them.
MODELS: dict[str, ModelConfig] = {
    f"deit_{'bilateral_' if bilateral else ''}{size}{'_distilled' if distilled else ''}"
    f"_patch16_{image_size}": _deit(size, distilled, bilateral, image_size)
    for bilateral in (False, True)
    for size in _SIZES
    for distilled in (False, True)
    for image_size in (224, 384)
} | {
    "digits_bilateral": _digits(bilateral=True, learned_residual=True),
    "digits_plain": _digits(bilateral=False, learned_residual=False),
    # The two with one of both changes, for comparison.
    "digits_bilateral_standard": _digits(bilateral=True, learned_residual=False),
    "digits_plain_grc": _digits(bilateral=False, learned_residual=True),
}


def named(name: str) -> ModelConfig:
    """The configuration of a known model.

    Raises:
        UserError: The name is unknown; the message lists the known ones.
    """
    if name not in MODELS:
        raise UserError(f"unknown model name {name!r}", f"Known: {', '.join(MODELS)}.")
    return MODELS[name]
