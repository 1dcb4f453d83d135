"""Position interpolation: the same weights at another image size, as DeiT does to fine-tune."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bilateral_export.checkpoint.datasets.imagenet import deit_preprocessing
from bilateral_export.checkpoint.formats.recognise import identify
from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata, ImagePreprocessing
from bilateral_export.models.definition import ModelDefinition
from bilateral_export.models.user_model import FAMILY as USER_FAMILY
from bilateral_export.preprocessing import Preprocessing

# Tensors with one row per token, tokens in the last axis but one.
PER_TOKEN = ("pos_embed", "query_features", "key_features")


def at_resolution(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    """Return an image classifier's checkpoint at another resolution.

    Whatever the model learned per position is interpolated (bicubic, `align_corners=False`, prefix
    tokens kept), as DeiT's `main.py` does with `pos_embed` under `--finetune`. The coordinates of
    the spatial kernel keep the trained grid's patch as their unit and its extent, so that a
    bandwidth covers the same part of the image. The preprocessing's resize grows in proportion.

    Raises:
        UserError: The model is not an image classifier, or its patches do not tile the new size.
    """
    image = checkpoint.card.model.image
    if image is None:
        raise UserError(
            f"model {checkpoint.card.name} takes no images",
            "Only an image classifier has an image size; leave --image-size out.",
        )
    if image_size <= 0 or image_size % image.patch_size:
        raise UserError(
            f"image size {image_size} is not a multiple of the patch size {image.patch_size}",
            "Choose one that is.",
        )
    if image_size == image.size:
        return checkpoint
    target = checkpoint.card.model.resized(image_size)
    state = {
        name: _resample(tensor, image.prefix, image.grid, image_size // image.patch_size)
        if name.rpartition(".")[2] in PER_TOKEN
        else tensor
        for name, tensor in checkpoint.state.items()
    }
    old_suffix, new_suffix = f"_{image.size}", f"_{image_size}"
    name = checkpoint.card.name
    if name.endswith(old_suffix):
        name = name.removesuffix(old_suffix) + new_suffix
    preprocessing = _preprocessing(checkpoint.card.preprocessing, image_size)
    card = checkpoint.card.model_copy(
        update={"name": name, "model": target, "preprocessing": preprocessing}
    )
    return dataclasses.replace(checkpoint, card=card, state=state)


def load_exported(
    path: Path,
    metadata: ArtifactMetadata,
    model: str | ModelDefinition | None = None,
    weights: str | None = None,
) -> Checkpoint:
    """Return the weights that an artifact was exported from, at its resolution, to compare both.

    Args:
        path: The checkpoint.
        metadata: What the artifact says of itself.
        model: As in `load_checkpoint`.
        weights: Which weights, for artifacts that do not say (older ones). It must not contradict
            those that do.

    Raises:
        UserError: As `load_checkpoint`, or the artifact was exported from other weights.
    """
    if metadata.family == USER_FAMILY and model is None:
        source = metadata.model.get("source", "my_model.py:build")
        raise UserError(
            f"the file was exported from a model of your own, whose code is {printable(source)}",
            f"Give --model {printable(source)}, with its path; this runs that file's code.",
        )
    exported = metadata.weights
    if exported is not None and weights not in (None, exported):
        raise UserError(
            f"the file was exported from the weights {exported!r}, and --weights says {weights!r}",
            "Leave --weights out, or export those.",
        )
    if weights is None and identify(path) == "torch":
        weights = exported
    return as_exported(load_checkpoint(path, model=model, weights=weights), metadata)


def as_exported(checkpoint: Checkpoint, metadata: ArtifactMetadata) -> Checkpoint:
    """Return the checkpoint at the resolution an artifact was exported at, to compare the two."""
    image_size = metadata.model.get("image_size")
    if image_size is None or checkpoint.card.model.image is None:
        return checkpoint
    return at_resolution(checkpoint, image_size)


def _preprocessing(before: Preprocessing | None, image_size: int) -> Preprocessing | None:
    if not isinstance(before, ImagePreprocessing):
        return before
    if before == deit_preprocessing(before.height):
        return deit_preprocessing(image_size)
    resize = round(before.resize * image_size / before.height)
    return before.model_copy(update={"height": image_size, "width": image_size, "resize": resize})


def _resample(rows: Tensor, prefix: int, old: int, new: int) -> Tensor:
    """`[..., prefix + old * old, dim]` to `[..., prefix + new * new, dim]`, in its own dtype."""
    *lead, _, dim = rows.shape
    kept, grid = rows[..., :prefix, :], rows[..., prefix:, :]
    image = grid.reshape(math.prod(lead), old, old, dim).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    resampled = image.permute(0, 2, 3, 1).reshape(*lead, new * new, dim).to(rows.dtype)
    return torch.cat([kept, resampled], dim=-2)
