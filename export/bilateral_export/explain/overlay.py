"""Heat map overlays: a map of weights over the image that the model saw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bilateral_export.metadata import ImagePreprocessing

# Dark to bright with luminance rising evenly, so that it reads in grey too: positions and RGB.
_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_COLOURS = ((0, 0, 10), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191))
OPACITY = 0.65


def seen_image(tensor: NDArray[np.float32], how: ImagePreprocessing | None) -> Image.Image:
    """Return the model's input `[C, H, W]` as a picture: normalisation undone.

    Without preprocessing the range of the tensor's values becomes black to white.
    """
    if how is None:
        low, high = float(tensor.min()), float(tensor.max())
        pixels = (tensor - low) / max(high - low, 1e-12)
    else:
        pixels = tensor * np.reshape(how.std, (-1, 1, 1)) + np.reshape(how.mean, (-1, 1, 1))
    bytes_ = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    if len(bytes_) == 1:
        return Image.fromarray(bytes_[0]).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(bytes_.transpose(1, 2, 0)))


def overlay(
    image: Image.Image,
    weights: NDArray[np.float32],
    *,
    highest: float | None = None,
    side: int = 448,
    smooth: bool = True,
) -> Image.Image:
    """Return an image with weights over it.

    Args:
        image: What the model saw.
        weights: `[rows, columns]`, at least 0, over the whole image.
        highest: The weight that gets the brightest colour; None takes the map's own highest.
        side: Pixels along the shorter side of the result.
        smooth: Whether patches blend into each other.

    Returns:
        An RGB picture. A map of zeros is all dark.
    """
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    # Small images keep their pixels, photographs are not shown as blocks.
    magnified = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    backdrop = np.asarray(image.convert("RGB").resize(size, magnified), dtype=np.float32)

    top = float(weights.max()) if highest is None else highest
    heat = Image.fromarray((weights / max(top, 1e-30)).astype(np.float32))
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    level = np.clip(np.asarray(heat.resize(size, method)), 0, 1)
    mixed = (1 - OPACITY) * backdrop + OPACITY * colours(level)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def outlined(picture: Image.Image, grid: tuple[int, int], patch: tuple[int, int]) -> Image.Image:
    """Return the picture with a white frame around one patch of a grid."""
    rows, columns = grid
    row, column = patch
    height, width = picture.height / rows, picture.width / columns
    left, top = round(column * width), round(row * height)
    right, bottom = round((column + 1) * width) - 1, round((row + 1) * height) - 1
    framed = picture.copy()
    ImageDraw.Draw(framed).rectangle((left, top, right, bottom), outline="white", width=2)
    return framed


def colours(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return RGB 0..255 `[..., 3]` of levels 0..1."""
    table = np.asarray(_COLOURS, dtype=np.float32)
    channels = [np.interp(level, _STOPS, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def colour_bar(width: int = 180, height: int = 10) -> Image.Image:
    """Return the colours from 0 to the highest weight, left to right."""
    row = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(height, axis=0)
    return Image.fromarray(np.rint(colours(row)).astype(np.uint8))
