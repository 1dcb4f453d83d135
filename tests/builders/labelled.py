"""Labelled files: the held-out digits, and models that make one mistake with them each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from tests.builders import tiny_models

from bilateral_export.metadata import METADATA_KEY, ImagePreprocessing
from bilateral_export.preprocessing import SegmentationPreprocessing

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"
COLOURS = ("red", "green", "blue")


def heldout_digits(folder: Path, count: int = 360, side: int = 20) -> Path:
    """The first held-out digits as PNG files of `side` pixels, a folder for each class."""
    with np.load(CHECKPOINTS / "digits_heldout.npz") as file:
        images, labels = file["images"][:count], file["labels"][:count]
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        target = folder / str(label) / f"{number:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        image.save(target)
    return folder


def mistaken(source: Path, target: Path, **changes: Any) -> Path:
    """An exported file with other metadata, or another part of its preprocessing."""
    shutil.copy(source, target)
    model = onnx.load(target)
    (entry,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    said = json.loads(entry.value)
    own = {name: changes.pop(name) for name in list(changes) if name in said}
    said |= own
    said["preprocessing"] |= changes
    entry.value = json.dumps(said)
    onnx.save(model, target)
    return target


def colours(path: Path, order: str = "RGB") -> Path:
    """Classify pictures as red, green or blue, as if trained on channels in this order."""
    how = ImagePreprocessing(
        height=4,
        width=4,
        channels=3,
        resize=4,
        interpolation="bilinear",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    weight = np.eye(3, dtype=np.float32)[["RGB".index(channel) for channel in order]]
    return tiny_models.save(
        path,
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["means"]),
            helper.make_node("MatMul", ["means", "weight"], ["logits"]),
        ],
        {"image": (TensorProto.FLOAT, ["batch", 3, 4, 4])},
        {"logits": (TensorProto.FLOAT, ["batch", 3])},
        {"weight": weight},
        tiny_models.metadata(name="colours", labels=COLOURS, preprocessing=how),
    )


def coloured_pictures(folder: Path, each: int = 5) -> Path:
    """Noisy pictures that are mostly of one colour."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(COLOURS):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 120, (9, 7, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def brightest_channel(path: Path, **changes: Any) -> Path:
    """A segmenter: the class of a pixel is its brightest channel; red, green, blue."""
    how = SegmentationPreprocessing(
        window=8,
        stride=6,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        palette=((255, 0, 0), (0, 255, 0), (0, 0, 255)),
    )
    said: Mapping[str, Any] = {"name": "segmenter", "labels": COLOURS, "preprocessing": how}
    return tiny_models.save(
        path,
        [
            helper.make_node("ArgMax", ["image"], ["wide"], axis=1, keepdims=0),
            helper.make_node("Cast", ["wide"], ["classes"], to=TensorProto.UINT8),
        ],
        {"image": (TensorProto.FLOAT, ["batch", 3, 8, 8])},
        {"classes": (TensorProto.UINT8, ["batch", 8, 8])},
        about=tiny_models.metadata(**{**said, **changes}),
    )
