"""Images of any size to a segmenter's windows, its answers back to one map, and a map to a picture.

Pillow and numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_serving.client.inputs.images import read_image, resize, to_channels

Classes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Windows:
    """An image cut into overlapping windows.

    Attributes:
        pixels: float32 `[windows, 3, side, side]`, normalised.
        corners: Row and column of each window's first pixel in the scaled image.
        scaled: Height and width of the scaled image.
        original: Height and width of the image.
    """

    pixels: Floats
    corners: tuple[tuple[int, int], ...]
    scaled: tuple[int, int]
    original: tuple[int, int]


def read_and_cut(
    source: Path | bytes, how: SegmentationPreprocessing, formats: tuple[str, ...] | None = None
) -> Windows:
    """Decode an image file, or the bytes of one, and cut it; `formats` as in `read_image`.

    Raises:
        UserError: It is not an image.
    """
    return cut(read_image(source, formats), how)


def cut(image: Image.Image, how: SegmentationPreprocessing) -> Windows:
    """Cut an image; one that is smaller than a window is scaled up first.

    Raises:
        UserError: It is so narrow that it would be too large then.
    """
    rgb = to_channels(image, 3)
    width, height = rgb.size
    factor = max(1.0, how.window / min(width, height))
    size = (max(how.window, round(width * factor)), max(how.window, round(height * factor)))
    if factor > 1:
        rgb = resize(rgb, size, Image.Resampling.BILINEAR)
    values = np.asarray(rgb, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(three, dtype=np.float32) for three in (how.mean, how.std))
    planes = ((values - mean) / std).transpose(2, 0, 1)
    scaled = (rgb.size[1], rgb.size[0])
    rows, columns = (starts(length, how.window, how.stride) for length in scaled)
    corners = tuple((row, column) for row in rows for column in columns)
    pixels = np.stack([planes[:, r : r + how.window, c : c + how.window] for r, c in corners])
    return Windows(pixels, corners, scaled, (height, width))


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return the windows' starts on an axis: every `stride` pixels, the last flush with the end."""
    last = length - window
    return sorted({*range(0, last, stride), last})


def stitch(classes: Sequence[Classes] | Classes, windows: Windows) -> Classes:
    """Return one map `[height, width]`: each pixel's class from its most central window."""
    side = windows.pixels.shape[-1]
    # Distance to the nearest edge: largest in the middle. At least 1, so that all pixels are set.
    edge = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1
    central = np.minimum(edge[:, None], edge[None, :])
    best = np.zeros(windows.scaled, dtype=central.dtype)
    result = np.zeros(windows.scaled, dtype=np.uint8)
    for piece, (row, column) in zip(classes, windows.corners, strict=True):
        area = (slice(row, row + side), slice(column, column + side))
        better = central > best[area]
        result[area][better] = piece[better]
        best[area][better] = central[better]
    if windows.scaled != windows.original:
        size = (windows.original[1], windows.original[0])
        back = Image.fromarray(result).resize(size, Image.Resampling.NEAREST)
        return np.asarray(back, dtype=np.uint8)
    return result


def overlay(
    image: Image.Image,
    classes: Classes,
    palette: Sequence[tuple[int, int, int]],
    opacity: float = 0.5,
) -> Image.Image:
    """Return the image with each pixel tinted in its class's colour.

    Raises:
        UserError: The opacity is not between 0 and 1, or a class has no colour.
    """
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity {opacity}", "It must be from 0 (the image) to 1 (the classes).")
    if classes.max() >= len(palette):
        raise UserError(
            f"class {classes.max()} has no colour: the palette has {len(palette)}",
            "Export the model with a colour for every class.",
        )
    colours = np.asarray(palette, dtype=np.uint8)[classes]
    return Image.blend(to_channels(image, 3), Image.fromarray(colours), opacity)


def shares(classes: Classes) -> list[tuple[int, float]]:
    """Return each class that occurs and its share of the pixels, largest first."""
    numbers, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(numbers[i]), float(counts[i] / classes.size)) for i in order]


def overlay_paths(sources: Sequence[Path], directory: Path) -> list[Path]:
    """Return where the images' overlays go: `<directory>/<name>.png`.

    Raises:
        UserError: Two would be the same file, or one would replace an image.
    """
    targets = [directory / f"{source.stem}.png" for source in sources]
    images = {source.resolve() for source in sources}
    for number, target in enumerate(targets):
        if target in targets[:number] or target.resolve() in images:
            raise UserError(
                f"the overlay of {sources[number]} would replace another picture, {target}",
                "Choose another directory, or give images of one name one at a time.",
            )
    return targets


def save_overlay(source: Path, classes: Classes, about: ArtifactMetadata, target: Path) -> None:
    """Write an image tinted in its classes' colours.

    Raises:
        UserError: The file cannot be written.
    """
    assert isinstance(about.preprocessing, SegmentationPreprocessing)
    picture = overlay(read_image(source), classes, about.preprocessing.palette)
    with atomic_file(target) as temporary:
        picture.save(temporary, "PNG")
