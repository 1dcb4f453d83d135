"""Image files to input tensors."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from bilateral_export.errors import UserError
from bilateral_export.metadata import ImagePreprocessing
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_serving.client.inputs.images import preprocess, read_image
from bilateral_serving.client.inputs.segmentation import cut


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


def test_a_height_and_a_width_do_not_keep_the_aspect_ratio() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    squashed = np.asarray(image.resize((6, 8), Image.Resampling.BICUBIC), dtype=np.float32)
    got = preprocess(image, how(size=4, resize=(8, 6)))
    assert np.allclose(got, squashed[2:6, 1:5].transpose(2, 0, 1) / 255, atol=1e-6)


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


def tiff(values: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A greyscale TIFF of kinds that Pillow reads and does not write; one strip, little-endian."""
    height, width = values.shape
    if bits == 12:  # packed, most significant bit first
        text = "".join(f"{value:012b}" for value in values.ravel())
        data = int(text, 2).to_bytes(len(text) // 8, "big")
    else:
        data = values.tobytes()
    short, long = 3, 4
    entries = [
        *((256, long, width), (257, long, height), (258, short, bits), (259, short, 1)),
        *((262, short, photometric), (273, long, 8 + 2 + 12 * 10 + 4), (277, short, 1)),
        *((278, long, height), (279, long, len(data)), (339, short, sample_format)),
    ]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4) + data


def grey_files(grey: np.ndarray) -> dict[str, bytes]:
    """One greyscale picture of 8 bits in every kind of file that can hold it exactly."""
    image = Image.fromarray(grey)
    wide = grey.astype(np.uint16) * 257
    twelve = np.rint(grey * (4095 / 255)).astype(np.uint16)
    other = Image.fromarray(255 - grey)
    files = {
        **{f"L {kind}": encoded(image, kind) for kind in ("PNG", "TIFF", "BMP", "PPM", "GIF")},
        **{f"RGB {kind}": encoded(image.convert("RGB"), kind) for kind in ("PNG", "TIFF", "BMP")},
        "P PNG": encoded(image.convert("P"), "PNG"),
        "LA PNG": encoded(image.convert("LA"), "PNG"),
        "RGBA PNG": encoded(image.convert("RGBA"), "PNG"),
        "RGB WebP": encoded(image.convert("RGB"), "WEBP", lossless=True),
        "I;16 PNG": encoded(Image.fromarray(wide), "PNG"),
        "I;16 TIFF": encoded(Image.fromarray(wide), "TIFF"),
        "I;16B TIFF": encoded(Image.frombytes("I;16B", image.size, wide.astype(">u2")), "TIFF"),
        "16-bit PGM": b"P5 %d %d 65535\n" % image.size + wide.astype(">u2").tobytes(),
        "12-bit PGM": b"P5 %d %d 4095\n" % image.size + twelve.astype(">u2").tobytes(),
        "12-bit TIFF": tiff(twelve, 12),
        "white is zero, 8-bit TIFF": tiff(255 - grey, 8, photometric=0),
        "white is zero, 16-bit TIFF": tiff(65535 - wide, 16, photometric=0),
        "animated GIF": encoded(image, "GIF", save_all=True, append_images=[other]),
        "animated PNG": encoded(image, "PNG", save_all=True, append_images=[other]),
        "TIFF of two pages": encoded(image, "TIFF", save_all=True, append_images=[other]),
    }
    if features.check("jpg_2000"):
        files["JPEG 2000"] = encoded(image, "JPEG2000")
        files["16-bit JPEG 2000"] = encoded(Image.fromarray(wide), "JPEG2000")
    return files


def files_without_scale(grey: np.ndarray) -> dict[str, bytes]:
    """The same picture in kinds of files that do not say which value is white."""
    files = {
        f"{kind} TIFF": encoded(Image.fromarray(values), "TIFF")
        for kind, values in {
            "float 0..1": (grey / 255).astype(np.float32),
            "float 0..255": grey.astype(np.float32),
            "float 0..65535": grey.astype(np.float32) * 257,
            "int32": grey.astype(np.int32),
        }.items()
    }
    files["uint32 TIFF"] = tiff(grey.astype("<u4"), 32)
    files["signed 16-bit TIFF"] = tiff(grey.astype("<i2"), 16, sample_format=2)
    files["signed 8-bit TIFF"] = tiff((grey // 2).astype("i1"), 8, sample_format=2)
    height, width = grey.shape
    pixels = (grey / np.float32(255)).astype("<f4").tobytes()
    files["PFM"] = b"Pf\n%d %d\n-1.0\n" % (width, height) + pixels
    return files


SEGMENTER = SegmentationPreprocessing(
    window=8, stride=8, mean=(0, 0, 0), std=(1, 1, 1), palette=((0, 0, 0),)
)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_picture_in_any_file_is_the_same_input_or_refused(seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    expected = grey.astype(np.float32) / np.float32(255)
    for kind, data in grey_files(grey).items():
        for channels in (1, 3):
            made = preprocess(read_image(data), how(channels, 8))
            np.testing.assert_array_equal(made, np.stack([expected] * channels), err_msg=kind)
        windows = cut(read_image(data), SEGMENTER).pixels
        np.testing.assert_array_equal(windows, np.stack([expected] * 3)[None], err_msg=kind)
    for data in files_without_scale(grey).values():
        with pytest.raises(UserError, match="nothing says which is white"):
            read_image(data)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha_is_read(mode: str) -> None:
    image = Image.new(f"{mode[:-1]}A", (4, 4), (200,) * (len(mode) - 1) + (128,)).convert(mode)
    for channels in (1, 3):
        np.testing.assert_allclose(preprocess(image, how(channels)), 100 / 255, atol=1.1 / 255)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV"])
def test_other_colour_spaces_are_nearly_the_same_colours(mode: str) -> None:
    """They are rounded when they are made, so the same picture is a few levels off."""
    colours = np.linspace(40, 215, 192).astype(np.uint8).reshape(8, 8, 3)
    image = Image.fromarray(colours)
    other = image.convert(mode)
    for channels in (1, 3):
        expected = preprocess(image, how(channels, 8))
        files = [encoded(other, "TIFF")] if mode != "HSV" else []
        for made in (other, *map(read_image, files)):
            got = preprocess(made, how(channels, 8))
            np.testing.assert_allclose(got, expected, atol=12 / 255, err_msg=mode)


def test_a_bilevel_picture_is_black_and_white() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(bool)
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        tensor = preprocess(read_image(encoded(Image.fromarray(bits), kind)), how(1, 8))
        np.testing.assert_array_equal(tensor[0], bits, err_msg=kind)


def test_a_16_bit_picture_is_turned_upright_and_its_clear_pixels_are_black() -> None:
    wide = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    exif = Image.Exif()
    exif[0x0112] = 6
    made = read_image(encoded(Image.fromarray(wide), exif=exif, transparency=int(wide[0, 3])))
    upright = np.rot90(np.where(wide == wide[0, 3], 0, wide), -1)
    np.testing.assert_array_equal(np.asarray(made), np.rint(upright / 257).astype(np.uint8))


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
