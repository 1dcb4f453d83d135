"""Two real photographs, which scikit-learn carries, in the kinds of files that people have."""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def photo(name: str) -> bytes:
    """The JPEG file china.jpg or flower.jpg, 640 x 427 pixels."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "datasets" / "images" / name).read_bytes()


def photo_files() -> dict[str, bytes]:
    """The photographs by what is special about the file; "turned" is upright by its EXIF only."""
    china, flower = photo("china.jpg"), photo("flower.jpg")
    image, other = (Image.open(io.BytesIO(data)).convert("RGB") for data in (china, flower))
    small = image.resize((96, 64), Image.Resampling.BICUBIC)
    grey = np.asarray(image.convert("L"))
    lossless = {"quality": 95, "subsampling": 0}
    return {
        "landscape": china,
        "flower": flower,
        "portrait": _saved(image.rotate(90, expand=True), "PNG"),
        "square": _saved(image.crop((100, 0, 527, 427)), "PNG"),
        "small": _saved(small, "PNG"),
        # Orientation 6: turn it by 90 degrees clockwise to see it upright.
        "turned": _with_orientation(china, 6),
        "upright": _saved(image.rotate(-90, expand=True), "PNG"),
        "grey": _saved(image.convert("L"), "JPEG", **lossless),
        "cmyk": _saved(image.convert("CMYK"), "JPEG", **lossless),
        "palette": _saved(image.quantize(256, dither=Image.Dither.NONE), "PNG"),
        "16 bit grey": _saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "16 bit": _sixteen_bit_png(np.asarray(image)),
        "gif": _saved(image, "GIF", save_all=True, append_images=[other]),
        "apng": _saved(image, "PNG", save_all=True, append_images=[other]),
        "webp": _saved(image, "WEBP", save_all=True, append_images=[other], lossless=True),
    }


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def _with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The same JPEG data with an EXIF segment."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes()
    return jpeg[:2] + struct.pack(">HH", 0xFFE1, len(body) + 2) + body + jpeg[2:]


def _sixteen_bit_png(pixels: np.ndarray) -> bytes:
    """Colours of 16 bits, which Pillow does not write."""
    height, width, _ = pixels.shape
    wide = (pixels.astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body)
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
