"""Image files to input tensors, as the model's metadata says. Pillow and numpy only."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.metadata import ImagePreprocessing

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_INDIRECT = {"LAB": "RGB", "La": "LA"}
# TIFF's tags, and the photometric interpretation in which 0 is white.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _SIGNED, _WHITE_IS_ZERO = 258, 262, 339, 2, 0


def read_image(source: Path | bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Decode a PNG, JPEG or other file that Pillow reads, turned upright by its EXIF orientation.

    Of an animation or a file of several pages, the first picture; colour profiles are ignored, as
    in DeiT's loader.

    Args:
        source: A file, or the bytes of one.
        formats: Pillow's names of those that are read; None: all.

    Returns:
        An image of 8 bits a channel.

    Raises:
        UserError: The file is missing, empty, cut off, too large, not an image, or does not say
            which of its values is white (32-bit, floating-point or signed values).
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else require_file(source, "image").read_bytes()
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        image.load()
        return _eight_bits(ImageOps.exif_transpose(image), image, name)
    except UnidentifiedImageError as error:
        known = ", ".join(formats or ("PNG", "JPEG"))
        raise UserError(f"{name} is not an image", f"Give a file of {known}.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has too many pixels", "Make it smaller first.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} is damaged: {error}", "Save or download it again.") from error


def preprocess(image: Image.Image, how: ImagePreprocessing) -> NDArray[np.float32]:
    """Make the model's input of one image.

    Returns:
        float32 `[C, H, W]`.

    Raises:
        UserError: The image is so narrow that it would be too large at the model's size.
    """
    resized = _resize_and_crop(to_channels(image, how.channels), how)
    pixels = np.asarray(resized, dtype=np.float32).reshape(how.height, how.width, how.channels)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (how.mean, how.std))
    normalised = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return an image in 8 bits a channel: luma (ITU-R 601) for one channel, RGB for three.

    Transparent pixels lie on black, and 16-bit values are scaled.

    Raises:
        UserError: Its values have no scale: modes I and F.
    """
    image = _eight_bits(image, image, "the image")
    if image.mode in _INDIRECT:  # Pillow has no direct way from these
        image = image.convert(_INDIRECT[image.mode])
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image.alpha_composite(opaque)
    return image.convert("L" if channels == 1 else "RGB")


def resize(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Resize to a width and height, within what Pillow would read from a file.

    Raises:
        UserError: It is a strip that gets too many pixels at this size.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > 2 * limit:
        raise UserError(
            f"an image of {image.width} x {image.height} pixels has too many, {size[0]} x"
            f" {size[1]}, at the model's size",
            "Cut it to the part that matters.",
        )
    return image.resize(size, resampling)


def _eight_bits(image: Image.Image, file: Image.Image, name: str) -> Image.Image:
    """Scale values wider than 8 bits to 0..255, black to white.

    Pillow's own conversion clips at 255 instead of scaling.

    Args:
        image: The pixels.
        file: What they were read from, whose format and tags say what they mean.
        name: The file's name, for the message.

    Raises:
        UserError: Which value is white is not known.
    """
    # Pillow scales every PNM to 16 bits, and its older versions open a 16-bit PNG as I.
    in_sixteen = image.mode == "I" and file.format in ("PNG", "PPM")
    tags = getattr(file, "tag_v2", {})
    if (image.mode in ("I", "F") and not in_sixteen) or _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise UserError(
            f"{name} has floating-point, signed or 32-bit values, and nothing says which is white",
            "Save it with 8 or 16 bits a channel.",
        )
    if not image.mode.startswith("I"):
        return image
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    values = np.asarray(image).astype(np.float64) * (255 / white)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns 8 bits over, and no others
        values = 255 - values
    if "transparency" in file.info:
        values[np.asarray(image) == file.info["transparency"]] = 0
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _resize_and_crop(image: Image.Image, how: ImagePreprocessing) -> Image.Image:
    width, height = image.size
    if isinstance(how.resize, tuple):
        size = (how.resize[1], how.resize[0])
    else:
        # The longer side is cut to a whole number of pixels, as torchvision's Resize does.
        shorter = min(width, height)
        size = (how.resize * width // shorter, how.resize * height // shorter)
    if size != (width, height):
        image = resize(image, size, _RESAMPLING[how.interpolation])
        width, height = size
    whole = round if how.crop == "round" else math.floor
    left, top = whole((width - how.width) / 2), whole((height - how.height) / 2)
    # A crop beyond the edges is filled with black.
    return image.crop((left, top, left + how.width, top + how.height))
