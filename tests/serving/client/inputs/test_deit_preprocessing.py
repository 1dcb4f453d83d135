"""Images become tensors exactly as in DeiT's evaluation, which torchvision carries out with Pillow.

The expectation is written down here from torchvision's definitions: `Resize(size)` makes the
shorter side `size` and the longer `int(size * long / short)`, calls Pillow's resize, and leaves an
image alone whose shorter side is `size` already; `CenterCrop` starts at `int(round((h - c) / 2))`;
`ToTensor` divides by 255; `Normalize` subtracts the mean and divides by the deviation.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bilateral_export.checkpoint.datasets.imagenet import deit_preprocessing
from bilateral_serving.client.inputs.images import preprocess, read_image

MEAN = np.float32([0.485, 0.456, 0.406])
STD = np.float32([0.229, 0.224, 0.225])


def deits_evaluation(image: Image.Image, input_size: int) -> NDArray[np.float32]:
    size = int(input_size / 0.875)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short != size:
        other = int(size * long / short)
        shape = (size, other) if width <= height else (other, size)
        image = image.resize(shape, Image.Resampling.BICUBIC)
    width, height = image.size
    top = int(round((height - input_size) / 2.0))  # noqa: RUF046
    left = int(round((width - input_size) / 2.0))  # noqa: RUF046
    image = image.crop((left, top, left + input_size, top + input_size))
    tensor = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    return (tensor - MEAN[:, None, None]) / STD[:, None, None]


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with noise on them, so that resampling and rounding matter."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(smooth.astype(int) + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("input_size", [224, 384])
@pytest.mark.parametrize(
    "shape", [(500, 375), (375, 500), (333, 500), (256, 256), (256, 301), (438, 640), (64, 80)]
)
def test_equals_deits_evaluation(shape: tuple[int, int], input_size: int) -> None:
    image = photograph(*shape)
    actual = preprocess(image, deit_preprocessing(input_size))
    assert actual.shape == (3, input_size, input_size)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, deits_evaluation(image, input_size))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_equals_deits_evaluation_from_the_bytes_of_a_file(file_format: str, mode: str) -> None:
    stream = io.BytesIO()
    photograph(500, 375).convert(mode).save(stream, file_format)
    data = stream.getvalue()
    actual = preprocess(read_image(data), deit_preprocessing(224))
    # ImageFolder's loader: open with Pillow, convert to RGB.
    expected = deits_evaluation(Image.open(io.BytesIO(data)).convert("RGB"), 224)
    np.testing.assert_array_equal(actual, expected)
