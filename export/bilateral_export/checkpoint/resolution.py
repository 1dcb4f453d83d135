"""The same weights at another image size, as DeiT does before it fine-tunes at 384."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.classifier import shown
from bilateral_export.models.free_grid import Resampling
from bilateral_export.preprocessing import ImagePreprocessing

# Tensors with one row per token, tokens in the last axis but one.
PER_TOKEN = ("pos_embed", "query_features", "key_features")


def at_resolution(checkpoint: Checkpoint, image_size: int | tuple[int, int]) -> Checkpoint:
    """Return an image classifier's checkpoint at another resolution.

    Whatever the model learned per position is interpolated with prefix tokens kept: bicubic,
    `align_corners=False`, as DeiT's `main.py` does with `pos_embed` under `--finetune`; weights of
    another library as that library does. The coordinates of the spatial kernel keep the trained
    grid's patch as their unit and its extent, so that a bandwidth covers the same part of the
    image. The preprocessing's resize grows in proportion. Starts from the resolution
    of the training, so that positions are interpolated once.

    Args:
        checkpoint: An image classifier's.
        image_size: Side of a square image, or height and width.

    Raises:
        UserError: The model is not an image classifier, or its patches do not tile the new size.
    """
    image = checkpoint.card.model.image
    if image is None:
        raise UserError(
            f"model {checkpoint.card.name} takes no images",
            "Only an image classifier has an image size; leave --image-size out.",
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) <= 0 or size[0] % image.patch_size or size[1] % image.patch_size:
        raise UserError(
            f"image size {shown(size)} is not a multiple of the patch size {image.patch_size}",
            "Choose one that is.",
        )
    if size == (image.height, image.width):
        return checkpoint
    trained = checkpoint.trained or checkpoint
    if checkpoint.trained is not None:
        return at_resolution(trained, image_size)
    target = checkpoint.card.model.resized(*size)
    grid = (size[0] // image.patch_size, size[1] // image.patch_size)
    resampling = resampling_of(checkpoint)
    state = {
        name: resample(tensor, image.prefix, image.grid, grid, resampling)
        if name.rpartition(".")[2] in PER_TOKEN
        else tensor
        for name, tensor in checkpoint.state.items()
    }
    old_suffix, new_suffix = f"_{shown((image.height, image.width))}", f"_{shown(size)}"
    name = checkpoint.card.name
    if name.endswith(old_suffix):
        name = name.removesuffix(old_suffix) + new_suffix
    how = checkpoint.card.preprocessing
    preprocessing = how.at(*size) if isinstance(how, ImagePreprocessing) else how
    card = checkpoint.card.model_copy(
        update={"name": name, "model": target, "preprocessing": preprocessing}
    )
    return dataclasses.replace(checkpoint, card=card, state=state, trained=trained)


def resampling_of(checkpoint: Checkpoint) -> Resampling:
    """How the library whose weights they are interpolates learned positions."""
    return checkpoint.conversion.resampling if checkpoint.conversion else "bicubic"


def resample(
    rows: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Tensor:
    """Interpolate rows per token to another grid, in their own dtype.

    Args:
        rows: `[..., prefix + old, dim]`.
        prefix: Leading rows, which are kept.
        old: Rows and columns of patches.
        new: The same, of the result.
        how: As the library does whose weights they are.

    Returns:
        `[..., prefix + new, dim]`.
    """
    *lead, _, dim = rows.shape
    kept, grid = rows[..., :prefix, :], rows[..., prefix:, :]
    image = grid.reshape(math.prod(lead), *old, dim).permute(0, 3, 1, 2).float()
    image = F.interpolate(
        image,
        size=new,
        mode="bicubic",
        align_corners=how == "bicubic-corners",
        antialias=how == "bicubic-antialias",
    )
    resampled = image.permute(0, 2, 3, 1).reshape(*lead, new[0] * new[1], dim).to(rows.dtype)
    return torch.cat([kept, resampled], dim=-2)
