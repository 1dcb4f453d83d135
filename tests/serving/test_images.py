"""Image files to input tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bilateral_export.errors import UserError
from bilateral_export.metadata import ImagePreprocessing
from bilateral_serving.images import preprocess, read_image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def how(channels: int = 3, size: int = 4, **changes: object) -> ImagePreprocessing:
    return ImagePreprocessing.model_validate(
        {
            "height": size,
            "width": size,
            "channels": channels,
            "resize": size,
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
            **changes,
        }
    )


def grid(mode: str, values: object) -> Image.Image:
    return Image.fromarray(np.asarray(values)).convert(mode)


SIXTEEN_BIT = Image.fromarray(np.full((4, 4), 0x8080, dtype=np.uint16))
GREY = Image.new("L", (4, 4), 128)
PALETTE = Image.new("RGB", (4, 4), (128, 128, 128)).quantize(4)
BILEVEL = Image.new("1", (4, 4), 1)
CMYK = Image.new("CMYK", (4, 4), (127, 127, 127, 0))


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (GREY, "PNG", 128 / 255),
        (PALETTE, "PNG", 128 / 255),
        (SIXTEEN_BIT, "PNG", 0x8080 / 0xFFFF),
        (BILEVEL, "PNG", 1.0),
        (CMYK, "JPEG", 128 / 255),
        (Image.new("LA", (4, 4), (200, 0)), "PNG", 0.0),
        (Image.new("RGBA", (4, 4), (255, 255, 255, 128)), "PNG", 128 / 255),
    ],
    ids=["grey", "palette", "16 bit", "1 bit", "CMYK", "transparent", "half transparent"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_means_the_same_colours(
    image: Image.Image, kind: str, expected: float, channels: int
) -> None:
    tensor = preprocess(read_image(encoded(image, kind)), how(channels))
    assert (tensor.shape, tensor.dtype) == ((channels, 4, 4), np.float32)
    np.testing.assert_allclose(tensor, expected, atol=1.1 / 255)


def test_a_transparent_colour_of_a_palette_is_black() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 255, 255])
    tensor = preprocess(read_image(encoded(image, transparency=0)), how(1))
    np.testing.assert_array_equal(tensor, 0)


def test_channels_come_first_and_are_normalised() -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    tensor = preprocess(image, how(mean=(0.5, 0.25, 0.2), std=(0.5, 0.25, 0.1)))
    np.testing.assert_allclose(tensor[:, 0, 0], [1.0, -1.0, 0.0], atol=1e-6)


def test_the_centre_of_the_shorter_side_is_kept() -> None:
    pixels = np.repeat(np.arange(8, dtype=np.uint8)[None] * 20, 4, axis=0)
    tensor = preprocess(Image.fromarray(pixels), how(1))
    np.testing.assert_allclose(tensor[0, 0] * 255, [40, 60, 80, 100], atol=1e-4)


def test_a_crop_smaller_than_the_resized_image() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tensor = preprocess(Image.fromarray(pixels), how(1, resize=8))
    np.testing.assert_allclose(tensor[0] * 255, pixels[2:6, 2:6], atol=1e-4)


def test_exif_orientation_is_applied() -> None:
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    tensor = preprocess(read_image(encoded(Image.fromarray(pixels), exif=exif)), how(1))
    np.testing.assert_array_equal(tensor[0, :, 3], 1)
    np.testing.assert_array_equal(tensor[0, :, :3], 0)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    size=st.integers(1, 24),
    extra=st.integers(0, 8),
    colour=st.integers(0, 255),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_an_even_colour_stays_even_at_any_size(
    width: int, height: int, size: int, extra: int, colour: int, interpolation: str
) -> None:
    image = Image.new("RGB", (width, height), (colour,) * 3)
    tensor = preprocess(image, how(size=size, resize=size + extra, interpolation=interpolation))
    assert tensor.shape == (3, size, size)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, colour / 255, atol=1e-6)


class TestBadInput:
    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"image .* does not exist"):
            read_image(tmp_path / "none.png")

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is a directory"):
            read_image(tmp_path)

    def test_not_an_image(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.png"
        path.write_text("not pixels")
        with pytest.raises(UserError, match=r"notes\.png is not an image"):
            read_image(path)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_cut_off(self, kind: str, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        path = tmp_path / "photo"
        whole = encoded(Image.fromarray(noise), kind)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="photo is damaged"):
            read_image(path)

    def test_a_strip_that_would_be_too_large_at_the_models_size(self) -> None:
        with pytest.raises(UserError, match="1 x 60000 pixels has too many"):
            preprocess(Image.new("RGB", (1, 60000)), how(size=224, resize=256))

    @settings(deadline=None, max_examples=60)
    @given(position=st.integers(8, 200), value=st.integers(0, 255))
    def test_damaged_bytes_give_an_image_or_a_clear_error(self, position: int, value: int) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
        data = bytearray(encoded(Image.fromarray(noise)))
        data[position % len(data)] = value
        try:
            tensor = preprocess(read_image(bytes(data)), how(1))
        except UserError:
            return
        assert np.isfinite(tensor).all()
