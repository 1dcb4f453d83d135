"""Preprocessing and class names that benchmarks and training arguments fix for known models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bilateral_export.checkpoint.arguments import TrainingArguments
from bilateral_export.checkpoint.card import CheckpointCard, describe
from bilateral_export.checkpoint.datasets import ade20k
from bilateral_export.checkpoint.datasets.imagenet import (
    CLASSES,
    deit_preprocessing,
    imagenet_labels,
)
from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.errors import UserError
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.registry import MODELS
from bilateral_export.preprocessing import (
    BytesPreprocessing,
    ImagePreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    Preprocessing,
)
from bilateral_export.tasks import pathfinder

_DIGITS = tuple(str(digit) for digit in range(10))
# CIFAR-10's classes, in the order of its own label file.
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_LABELS = {
    "image": _CIFAR,
    "text": ("negative", "positive"),
    "listops": _DIGITS,
    "retrieval": ("not related", "related"),
    "pathfinder": pathfinder.LABELS,
}


def _imagenet(_name: str, config: Any) -> tuple[tuple[str, ...], Preprocessing]:
    labels = imagenet_labels() if config.num_classes == CLASSES else ()
    return labels, deit_preprocessing(config.height)


def _ade20k(_name: str, config: Any) -> tuple[tuple[str, ...], Preprocessing]:
    return ade20k.LABELS, ade20k.ade20k_preprocessing(config.image_size)


def _long_range_arena(name: str, config: Any) -> tuple[tuple[str, ...], Preprocessing]:
    task = name.removeprefix("lra_").removeprefix("bilateral_")
    if config.grid is not None:
        return _LABELS[task], PixelsPreprocessing(height=config.grid[0], width=config.grid[1])
    if task == "listops":
        return _LABELS[task], ListOpsPreprocessing(length=config.length)
    return _LABELS[task], BytesPreprocessing(length=config.length, documents=config.documents)


def _listops(_name: str, config: Any) -> tuple[tuple[str, ...], Preprocessing]:
    return _DIGITS, ListOpsPreprocessing(length=config.length)


# What a benchmark fixes, by the first word of its models' names: class names and preprocessing.
_BENCHMARKS: dict[str, Callable[[str, Any], tuple[tuple[str, ...], Preprocessing]]] = {
    "deit": _imagenet,
    "lra": _long_range_arena,
    "listops": _listops,
    "segmenter": _ade20k,
}


def card_of(name: str, config: FamilyConfig) -> CheckpointCard:
    """Return the card of a checkpoint that brings none.

    A model of `MODELS` gets its benchmark's preprocessing and class names: ImageNet's with DeiT's
    evaluation, the Long Range Arena's, ADE20K's. Of a configuration from elsewhere nothing is
    guessed, and a language model's vocabulary cannot be.

    Raises:
        UserError: The name cannot be a model's.
    """
    try:
        card = CheckpointCard(name=name, model=config)
    except ValidationError as error:
        raise UserError(describe(error), "Rename the file.") from error
    if MODELS.get(name) != config:
        return card
    benchmark = _BENCHMARKS.get(name.partition("_")[0])
    if benchmark is None:
        return card
    labels, preprocessing = benchmark(name, config)
    return card.model_copy(update={"labels": labels, "preprocessing": preprocessing})


def architecture(arguments: TrainingArguments, path: Path) -> CheckpointCard | None:
    """Return the card of the model that training arguments name; None where the name is not known.

    As DeiT and timm do, the named architecture takes the arguments' image size and number of
    classes. Fine-tuned on other classes, it keeps the preprocessing and has no labels.

    Raises:
        UserError: The architecture cannot have that image size.
    """
    name = arguments.model
    if name is None or name not in MODELS:
        return None
    config, card = MODELS[name], card_of(name, MODELS[name])
    if config.image is None:
        return card
    said = {"image_size": arguments.image_size, "num_classes": arguments.num_classes}
    changed = {k: v for k, v in said.items() if v is not None and v != getattr(config, k)}
    if not changed:
        return card
    try:
        config = type(config).model_validate(config.model_dump(exclude_unset=True) | changed)
    except ValidationError as error:
        raise UserError(
            f"checkpoint {path}: its training arguments contradict their model {name}:"
            f" {describe(error)}",
            "Give --model a JSON configuration, and save the state_dict alone.",
        ) from error
    labels = () if "num_classes" in changed else card.labels
    how = card.preprocessing
    if isinstance(how, ImagePreprocessing) and config.image is not None:
        how = deit_preprocessing(config.image.height)
    return card.model_copy(update={"model": config, "labels": labels, "preprocessing": how})


def prepared(card: CheckpointCard, arguments: TrainingArguments) -> tuple[CheckpointCard, str]:
    """Return the card as training arguments complete it, and its preprocessing's source.

    Raises:
        UserError: The arguments' channels are not the model's.
    """
    before, image = card.preprocessing, card.model.image
    if image is None:
        return card, f"the name {card.name}"
    source = f"DeiT's evaluation, by the name {card.name}"
    try:
        if before is None:
            # All or nothing: what training scripts leave out is their model's, and not known.
            before, source = arguments.complete(image.height, image.channels), ""
        if not isinstance(before, ImagePreprocessing):
            return card, ""
        after = arguments.prepare(before)
    except ValidationError as error:
        raise UserError(
            f"the training arguments contradict model {printable(card.name)}: {describe(error)}",
            "Give --model a card with the preprocessing.",
        ) from error
    said = ", ".join(arguments.said())
    if said:
        source = f"{source}{', with ' if source else ''}the training arguments' {said}"
    return card.model_copy(update={"preprocessing": after}), source
