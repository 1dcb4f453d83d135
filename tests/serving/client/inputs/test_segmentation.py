"""Large images in windows: every pixel is covered, and comes from where it is most central."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bilateral_export.errors import UserError
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_serving.client.inputs.segmentation import (
    cut,
    overlay,
    overlay_paths,
    shares,
    starts,
    stitch,
)

HOW = SegmentationPreprocessing(
    window=16, stride=10, mean=(0.0,) * 3, std=(1.0,) * 3, palette=((255, 0, 0), (0, 0, 255))
)


@given(length=st.integers(16, 200), stride=st.integers(1, 16))
def test_windows_cover_an_axis_and_stay_inside(length: int, stride: int) -> None:
    begins = starts(length, 16, stride)
    assert begins[0] == 0
    assert begins[-1] == length - 16
    assert all(0 < b - a <= stride for a, b in pairwise(begins))


@given(height=st.integers(1, 60), width=st.integers(1, 60))
def test_a_model_that_answers_pixel_by_pixel_is_put_together_exactly(
    height: int, width: int
) -> None:
    """The class is the red value: it must come back as it went in, wherever windows meet."""
    random = np.random.default_rng(height * 61 + width)
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    windows = cut(image, HOW)
    answers = np.rint(windows.pixels[:, 0] * 255).astype(np.uint8)
    stitched = stitch(answers, windows)
    assert stitched.shape == (height, width)
    if min(height, width) >= 16:
        np.testing.assert_array_equal(stitched, np.asarray(image)[..., 0])


def test_where_windows_overlap_the_more_central_one_decides() -> None:
    windows = cut(Image.new("RGB", (26, 16)), HOW)
    assert windows.corners == ((0, 0), (0, 10))
    answers = np.stack([np.full((16, 16), number, np.uint8) for number in (0, 1)])
    row = stitch(answers, windows)[8]
    # The middle between the two windows' edges is column 13; the first keeps a tie.
    assert row.tolist() == [0] * 13 + [1] * 13


def test_normalisation_is_the_metadatas() -> None:
    how = HOW.model_copy(update={"mean": (0.2, 0.4, 0.6), "std": (0.5, 0.25, 0.1)})
    pixels = cut(Image.new("RGB", (16, 16), (51, 102, 255)), how).pixels
    np.testing.assert_allclose(pixels[0, :, 3, 3], [0.0, 0.0, 4.0], atol=1e-6)


def test_sixteen_bits_and_transparency_mean_the_same_colours_as_elsewhere() -> None:
    deep = Image.fromarray(np.full((16, 16), 0x8080, dtype=np.uint16))
    np.testing.assert_allclose(cut(deep, HOW).pixels, 128 / 255, atol=1e-6)
    assert cut(Image.new("RGBA", (16, 16), (255, 255, 255, 0)), HOW).pixels.max() == 0
    assert (
        overlay(deep, np.zeros((16, 16), np.uint8), HOW.palette, 0).getpixel((3, 3)) == (128,) * 3
    )


def test_a_strip_that_would_be_too_large_at_the_models_size_is_refused() -> None:
    with pytest.raises(UserError, match="1 x 60000 pixels has too many"):
        cut(Image.new("L", (1, 60000)), HOW.model_copy(update={"window": 512}))


def test_an_overlay_replaces_neither_an_image_nor_another_overlay(tmp_path: Path) -> None:
    photo, other, scan = tmp_path / "a.png", tmp_path / "else" / "a.jpg", tmp_path / "b.jpg"
    assert overlay_paths([photo, scan], tmp_path / "out") == [
        tmp_path / "out" / "a.png",
        tmp_path / "out" / "b.png",
    ]
    with pytest.raises(UserError, match="replace another picture"):
        overlay_paths([photo, other], tmp_path / "out")
    with pytest.raises(UserError, match="replace another picture"):
        overlay_paths([photo], tmp_path)
    assert overlay_paths([scan], tmp_path) == [tmp_path / "b.png"]


def test_the_overlay_tints_each_pixel_in_its_classs_colour() -> None:
    classes = np.array([[0, 1]], dtype=np.uint8)
    picture = overlay(Image.new("RGB", (2, 1), (100, 100, 100)), classes, HOW.palette, opacity=0.5)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(177, 50, 50), (50, 50, 177)]
    with pytest.raises(UserError, match="class 2 has no colour"):
        overlay(Image.new("RGB", (1, 1)), np.full((1, 1), 2, np.uint8), HOW.palette)


def test_shares_are_of_the_pixels_largest_first() -> None:
    assert shares(np.array([[3, 3, 3, 1]], dtype=np.uint8)) == [(3, 0.75), (1, 0.25)]
