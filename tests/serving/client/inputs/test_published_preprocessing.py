"""Real photographs become the pixels that torchvision and transformers make of them.

`published.npz` holds what those two made of the same files (see `record_published.py`): a grid of
pixels of each, 0 to 255 before normalisation. With Pillow, which both use for PIL images, pixels
are equal, but for one level where another version's JPEG decoder rounds otherwise. transformers'
default processors resize with torch instead: one level at most, on few pixels.

Two kinds of files are read otherwise on purpose: torchvision's ImageFolder does not turn a
photograph upright, and both libraries' loaders clip 16-bit greyscale to white.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.builders.photos import photo_files

from bilateral_export.metadata import ImagePreprocessing
from bilateral_serving.client.inputs.images import preprocess, read_image

FILES = photo_files()
POINTS = np.linspace(0, 223, 14).round().astype(int)


def how(resize: int, interpolation: str, crop: str) -> ImagePreprocessing:
    return ImagePreprocessing.model_validate(
        {
            "height": 224,
            "width": 224,
            "resize": resize,
            "interpolation": interpolation,
            "crop": crop,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
        }
    )


RECIPES = {
    "torchvision DeiT": how(256, "bicubic", "round"),
    "torchvision vit_b_16": how(256, "bilinear", "round"),
    "transformers DINOv2, Pillow": how(256, "bicubic", "floor"),
    "transformers DINOv2, torchvision": how(256, "bicubic", "floor"),
    # Both sides become 224: the same as the shorter side for a square photograph alone.
    "transformers ViT, Pillow": how(224, "bilinear", "floor"),
    "transformers ViT, torchvision": how(224, "bilinear", "floor"),
}
CASES = [
    (recipe, kind)
    for recipe in RECIPES
    for kind in FILES
    if kind == "square" or "ViT" not in recipe
]


@pytest.fixture(scope="module")
def published() -> dict[str, NDArray[np.uint8]]:
    with np.load(Path(__file__).parent / "published.npz") as file:
        return dict(file)


def levels(data: bytes, recipe: str) -> NDArray[np.float64]:
    """The pixels of the grid, 0 to 255, with the normalisation undone."""
    values = preprocess(read_image(data), RECIPES[recipe]).astype(np.float64)
    return (values[:, POINTS][:, :, POINTS] * 0.25 + 0.5) * 255


@pytest.mark.parametrize(("recipe", "kind"), CASES)
def test_pixels_are_the_published_ones(
    published: dict[str, NDArray[np.uint8]], recipe: str, kind: str
) -> None:
    other = kind
    if kind == "turned" and recipe.startswith("torchvision"):
        other = "upright"
    if kind == "16 bit grey":
        other = "grey"
    difference = np.abs(levels(FILES[kind], recipe) - published[f"{recipe}/{other}"])
    # A grey JPEG and a grey PNG of the same picture differ by what JPEG loses.
    largest, mean = (24, 1.0) if kind == "16 bit grey" else (1, 0.02)
    assert difference.max() <= largest + 1e-3
    assert difference.mean() <= mean


def test_the_files_that_are_read_otherwise_are_those_that_the_page_names(
    published: dict[str, NDArray[np.uint8]],
) -> None:
    found = {
        (recipe.partition(" ")[0], kind)
        for recipe, kind in CASES
        if np.abs(levels(FILES[kind], recipe) - published[f"{recipe}/{kind}"]).max() > 2
    }
    assert found == {
        ("torchvision", "turned"),
        ("torchvision", "16 bit grey"),
        ("transformers", "16 bit grey"),
    }


@pytest.mark.parametrize(
    ("recipe", "wrong"),
    [
        ("torchvision DeiT", how(256, "bilinear", "round")),
        ("torchvision DeiT", how(248, "bicubic", "round")),
        ("torchvision vit_b_16", how(256, "bicubic", "round")),
        ("transformers DINOv2, Pillow", how(256, "bicubic", "round")),
    ],
    ids=["interpolation", "resize", "interpolation of vit_b_16", "half a pixel of the crop"],
)
def test_the_tolerance_shows_each_mistake(
    published: dict[str, NDArray[np.uint8]],
    recipe: str,
    wrong: ImagePreprocessing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RECIPES, recipe, wrong)
    difference = np.abs(levels(FILES["landscape"], recipe) - published[f"{recipe}/landscape"])
    assert difference.max() > 10
    assert difference.mean() > 1
    swapped = np.abs(levels(FILES["landscape"], recipe)[::-1] - published[f"{recipe}/landscape"])
    assert swapped.mean() > 10


def test_the_recorded_versions_are_named(published: dict[str, NDArray[np.uint8]]) -> None:
    versions = json.loads(str(published["versions"]))
    assert versions.keys() == {"torchvision", "transformers", "pillow"}
