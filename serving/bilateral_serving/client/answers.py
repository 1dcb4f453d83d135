"""A served model's answers about files: the classes of each, as people and JSON are shown them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_export.tensors import FEATURES, Array
from bilateral_serving.client.inputs.segmentation import overlay_paths, save_overlay, shares
from bilateral_serving.client.requests import Prediction, Size
from bilateral_serving.client.sync import Client


@dataclass(frozen=True)
class Classified:
    """A classifier's answer: the most probable classes of one input, best first."""

    input: str
    predictions: tuple[Prediction, ...]

    measure = "probability"
    form = ".1%"

    @property
    def classes(self) -> list[tuple[str, float]]:
        """Each class's label and probability."""
        return [(one.label, one.probability) for one in self.predictions]

    @property
    def document(self) -> dict[str, Any]:
        """The answer as JSON has it."""
        return {"input": self.input, "predictions": [vars(one) for one in self.predictions]}


@dataclass(frozen=True)
class Featured:
    """The answer of a model without a head: the features of one input."""

    input: str
    features: Array

    measure = "norm"
    form = ".4g"

    @property
    def classes(self) -> list[tuple[str, float]]:
        """The features' shape, and their Euclidean norm."""
        shape = " x ".join(map(str, self.features.shape))
        return [(f"features {shape}", float(np.linalg.norm(self.features.astype(np.float64))))]

    @property
    def document(self) -> dict[str, Any]:
        """The answer as JSON has it."""
        return {"input": self.input, "features": self.features.tolist()}


@dataclass(frozen=True)
class Segmented:
    """A segmenter's answer: the classes that cover most of one image, and its overlay."""

    input: str
    overlay: Path | None
    classes: list[tuple[str, float]]

    measure = "pixels"
    form = ".1%"

    @property
    def document(self) -> dict[str, Any]:
        """The answer as JSON has it."""
        found = [{"label": label, "share": share} for label, share in self.classes]
        return {"input": self.input, "overlay": self.overlay, "classes": found}


def answer_files(
    client: Client,
    model: str,
    files: Sequence[Path],
    top: int = 5,
    overlay: Path | None = None,
    size: Size | None = None,
) -> Sequence[Classified | Featured | Segmented]:
    """Return a served model's answer about each file, prepared as its metadata says.

    Args:
        client: The connection to its server.
        model: A classifier, a segmenter, or a model that was exported for its features.
        files: What it takes: images, texts, expressions; two texts an input for a model that
            compares documents.
        top: Classes of each answer.
        overlay: Directory for a segmenter's overlays, `<image>.png` each; None: none are written.
        size: Of images, for a model of several sizes; see `Client.classify`.

    Raises:
        UserError: The model is neither, a file is not what it takes, or an overlay is asked of a
            classifier.
    """
    if size == "aspect" and len(files) > 1:  # each has its own, and so is a batch of its own
        alone = [answer_files(client, model, [file], top, overlay, size) for file in files]
        return [answer for answers in alone for answer in answers]
    info = client.model_metadata(model)
    about = info.metadata
    if about is not None and isinstance(about.preprocessing, SegmentationPreprocessing):
        if size is not None:
            raise UserError(
                f"model '{model}' is a segmenter, which cuts its windows", "Leave the size out."
            )
        return _segment(client, model, files, about, top, overlay)
    if overlay is not None:
        raise UserError(
            f"model '{model}' is not a segmenter, so it has no overlay", "Leave --overlay out."
        )
    if FEATURES in [spec.name for spec in info.outputs]:
        pairs = zip(files, client.features(model, files, size=size), strict=True)
        return [Featured(str(path), features) for path, features in pairs]
    answers = client.classify(model, files, top, size=size)
    each = len(files) // len(answers)
    return [
        Classified(" ".join(map(str, files[number * each : (number + 1) * each])), answer)
        for number, answer in enumerate(answers)
    ]


def _segment(
    client: Client,
    model: str,
    files: Sequence[Path],
    about: ArtifactMetadata,
    top: int,
    overlay: Path | None,
) -> list[Segmented]:
    pictures = overlay_paths(files, overlay) if overlay else [None] * len(files)
    answers = []
    for path, picture, classes in zip(files, pictures, client.segment(model, files), strict=True):
        if picture:
            save_overlay(path, classes, about, picture)
        named = [
            (about.labels[number] if about.labels else str(number), share)
            for number, share in shares(classes)[:top]
        ]
        answers.append(Segmented(str(path), picture, named))
    return answers
