"""Accuracy against attack budget, on every runtime that is given the same adversarial images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from bilateral_benchmarks.studies.robustness.attacks import (
    ATTACKS,
    Attack,
    Images,
    attack,
    normalise,
    preprocessing_of,
)
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.runners.base import Runner

# In 255ths of the full range of a pixel, as papers count them.
BUDGETS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
TORCH = "torch"


@dataclass(frozen=True)
class Dataset:
    """Images `[n, C, H, W]` in 0..1 and their classes."""

    pixels: Images
    classes: NDArray[np.int64]

    def first(self, count: int | None) -> Dataset:
        """Return the first `count` images, or all.

        Raises:
            UserError: That is none.
        """
        if count is not None and count < 1:
            raise UserError(f"{count} images", "Ask for at least one.")
        return Dataset(self.pixels[:count], self.classes[:count])


class Point(BaseModel):
    """What happened to one model at one budget.

    Attributes:
        attack: The attack; None for the images as they are.
        budget: Its l-infinity budget in 255ths of a pixel's range.
        accuracy: By runtime; "torch" is the model that was attacked.
        other_decisions: By runtime other than torch, on how many images its class is another.
        margin_of_others: The largest gap between torch's two highest logits on those images: where
            it is within rounding, the two classes were a draw.
    """

    model_config = ConfigDict(frozen=True)

    attack: Attack | None
    budget: float
    accuracy: dict[str, float]
    other_decisions: dict[str, int]
    margin_of_others: float


class Curve(BaseModel):
    """One trained model under attack."""

    model_config = ConfigDict(frozen=True)

    name: str
    seed: int
    attention: str
    residual: str
    images: int
    points: tuple[Point, ...]


def load_dataset(path: Path) -> Dataset:
    """Read `images` `[n, H, W]`, uint8, and `labels` `[n]`, integers, from an `.npz` file.

    Raises:
        UserError: The file cannot be read, lacks one of the two, or they are something else.
    """
    require_file(path, "dataset")
    try:
        with np.load(path) as archive:
            images, labels = archive["images"], archive["labels"]
    except (KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not an .npz file with the arrays images and labels",
            "export/checkpoints/train_digits.py writes one.",
        ) from error
    whole = images.dtype == np.uint8 and np.issubdtype(labels.dtype, np.integer)
    if not (whole and images.ndim == 3 and len(images) and labels.shape == images.shape[:1]):
        raise UserError(
            f"{path} has images {images.dtype}{list(images.shape)} and labels"
            f" {labels.dtype}{list(labels.shape)}",
            "Expected uint8[n, height, width] and as many integers.",
        )
    return Dataset((images[:, None] / 255).astype(np.float32), labels.astype(np.int64))


def check(checkpoint: Checkpoint, data: Dataset, budgets: Sequence[float]) -> None:
    """Check that a checkpoint can be attacked on these images within these budgets.

    Raises:
        UserError: It does not classify such images into such classes, or a budget is not valid.
    """
    config = checkpoint.card.model
    preprocessing_of(checkpoint)
    assert config.image is not None, "it has image preprocessing"
    takes = (config.image.channels, config.image.size, config.image.size)
    if data.pixels.shape[1:] != takes:
        raise UserError(
            f"{checkpoint.path} takes images {list(takes)}, the data has"
            f" {list(data.pixels.shape[1:])}",
            "Give images of the model's own size.",
        )
    if data.classes.min() < 0 or data.classes.max() >= config.classes:
        raise UserError(
            f"the data has classes {data.classes.min()} to {data.classes.max()},"
            f" {checkpoint.path} has {config.classes}",
            "Give the data that the model was trained for.",
        )
    for budget in budgets:
        if not 0 < budget <= 255:
            raise UserError(f"budget {budget:g}", "It must be above 0 and at most 255.")


def robustness(
    checkpoint: Checkpoint,
    data: Dataset,
    runners: Sequence[Runner] = (),
    *,
    budgets: Sequence[float] = BUDGETS,
    attacks: Iterable[Attack] = ATTACKS,
    on_point: Callable[[Point], None] | None = None,
) -> Curve:
    """Attack a checkpoint's torch model at every budget, and show the images to all runtimes.

    Args:
        checkpoint: An image classifier.
        data: Held-out images.
        runners: Runtimes with the same weights, entered; their outputs' first is the logits.
        budgets: In 255ths.
        attacks: Which attacks.
        on_point: Called after each budget, for progress.

    Raises:
        UserError: As `check`.
    """
    check(checkpoint, data, budgets)
    model = checkpoint.build_model()
    how = preprocessing_of(checkpoint)
    points = []
    for kind, budget in [(None, 0.0), *((k, b) for k in attacks for b in budgets)]:
        pixels = data.pixels
        if kind is not None:
            pixels = attack(checkpoint, pixels, data.classes, kind, budget / 255)
        inputs = normalise(pixels, how)
        point = _point(kind, budget, inputs, data.classes, model, runners)
        points.append(point)
        if on_point:
            on_point(point)
    config = checkpoint.card.model
    attention = "plain" if config.attention.spatial_kernel == "none" else "bilateral"
    return Curve(
        name=checkpoint.card.name,
        seed=int(checkpoint.card.training.get("seed", 0)),
        attention=attention,
        residual="GRC" if config.residual.learned else "standard",
        images=len(data.classes),
        points=tuple(points),
    )


def _point(
    kind: Attack | None,
    budget: float,
    inputs: Images,
    classes: NDArray[np.int64],
    model: nn.Module,
    runners: Sequence[Runner],
) -> Point:
    logits = _torch_logits(model, inputs)
    decision = logits.argmax(-1)
    highest = np.sort(logits, axis=-1)
    margin = highest[:, -1] - highest[:, -2]
    accuracy = {TORCH: float((decision == classes).mean())}
    others: dict[str, int] = {}
    widest = 0.0
    for runner in runners:
        name = runner.name.split()[0]
        output = runner.run({runner.inputs[0].name: inputs})[runner.outputs[0].name]
        theirs = output.argmax(-1)
        accuracy[name] = float((theirs == classes).mean())
        others[name] = int((theirs != decision).sum())
        widest = max(widest, float(margin[theirs != decision].max(initial=0.0)))
    return Point(
        attack=kind,
        budget=budget,
        accuracy=accuracy,
        other_decisions=others,
        margin_of_others=widest,
    )


def _torch_logits(model: nn.Module, inputs: Images) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.from_numpy(inputs)).numpy()
    return logits
