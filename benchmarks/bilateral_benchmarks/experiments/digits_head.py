"""A linear head on real images: scikit-learn's digits, for trained features without a head."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.preprocessing import ImagePreprocessing
from bilateral_export.runners.base import run_in_batches
from bilateral_export.runners.lowered import LoweredRunner
from bilateral_export.tensors import FEATURES

# Side of the images: 64 patches of 14 pixels.
SIDE = 112
_TRAINING = 600
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class DigitsClassifier:
    """Features with a head for digits.

    Attributes:
        checkpoint: Of both.
        images: Prepared images `[items, 3, SIDE, SIDE]` that the head was not fitted on.
        labels: Their classes `[items]`.
    """

    checkpoint: Checkpoint
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def digits_classifier(features: Checkpoint, folder: Path) -> DigitsClassifier:
    """Return trained features with a logistic regression on 600 of scikit-learn's 1,797 digits.

    Args:
        features: Weights of an image classifier without a head, such as DINOv2.
        folder: Where its ONNX file is written.

    Raises:
        UserError: It has a head, or takes no images.
    """
    from sklearn.linear_model import LogisticRegression

    config, how = features.card.model, features.card.preprocessing
    if (
        not isinstance(config, ImageClassifierConfig)
        or config.num_classes
        or config.output != "cls"
    ):
        raise UserError(
            f"{features.card.name} does not give a class token's features",
            "Give a checkpoint without a head, such as DINOv2's.",
        )
    if not isinstance(how, ImagePreprocessing):
        raise UserError(f"{features.card.name} does not say how images are prepared")
    small = at_resolution(features, SIDE)
    exported = folder / "features.onnx"
    export_onnx(small, exported)
    images, labels = _digits(how)
    with LoweredRunner(exported) as runner:
        seen = run_in_batches(runner, {"image": images}, FEATURES, _BATCH)
    head = LogisticRegression(max_iter=2000).fit(seen[:_TRAINING], labels[:_TRAINING])
    weights = {"head.weight": head.coef_, "head.bias": head.intercept_}
    fitted = {name: torch.tensor(value, dtype=torch.float32) for name, value in weights.items()}
    classes = tuple(map(str, head.classes_))
    model = config.model_copy(
        update={
            **small.card.model.model_dump(include={"image_size"}),
            "num_classes": len(classes),
            "output": "logits",
        }
    )
    card = small.card.model_copy(
        update={"model": model, "labels": classes, "name": f"{features.card.name}, digits"}
    )
    whole = dataclasses.replace(small, card=card, state={**small.state, **fitted}, trained=None)
    return DigitsClassifier(whole, images[_TRAINING:], labels[_TRAINING:])


def _digits(how: ImagePreprocessing) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all digits as RGB images of `SIDE` pixels in a fixed random order, and classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pictures = [
        np.asarray(
            Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
            .convert("RGB")
            .resize((SIDE, SIDE), Image.Resampling.BICUBIC),
            dtype=np.float32,
        )
        for pixels in found.images[order]
    ]
    scaled = (np.stack(pictures) / 255 - np.array(how.mean)) / np.array(how.std)
    return scaled.transpose(0, 3, 1, 2).astype(np.float32), found.target[order]
