"""What is known of a model beyond its weights: preprocessing and class names."""

from __future__ import annotations

from pathlib import Path

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
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.family import ModelConfig
from bilateral_export.models.registry import MODELS
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifierConfig
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


def card_of(name: str, config: ModelConfig) -> CheckpointCard:
    """The card of a checkpoint that brings none.

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
    if isinstance(config, ImageClassifierConfig) and name.startswith("deit_"):
        labels = imagenet_labels() if config.num_classes == CLASSES else ()
        return _filled(card, labels, deit_preprocessing(config.height))
    if isinstance(config, SequenceClassifierConfig):
        labels = _LABELS[name.rpartition("_")[2]] if name.startswith("lra_") else _DIGITS
        return _filled(card, labels, _sequence_preprocessing(name, config))
    if isinstance(config, SegmenterConfig):
        return _filled(card, ade20k.LABELS, ade20k.ade20k_preprocessing(config.image_size))
    return card


def architecture(arguments: TrainingArguments, path: Path) -> CheckpointCard | None:
    """The card of the model that training arguments name; None where the name is not known.

    As DeiT and timm do, the named architecture takes the arguments' image size and number of
    classes. Fine-tuned on other classes, it keeps the preprocessing and has no labels.

    Raises:
        UserError: The architecture cannot have that image size.
    """
    name = arguments.model
    if name is None or name not in MODELS:
        return None
    config, card = MODELS[name], card_of(name, MODELS[name])
    if not isinstance(config, ImageClassifierConfig):
        return card
    said = {"image_size": arguments.image_size, "num_classes": arguments.num_classes}
    changed = {k: v for k, v in said.items() if v is not None and v != getattr(config, k)}
    if not changed:
        return card
    try:
        config = ImageClassifierConfig.model_validate(config.model_dump() | changed)
    except ValidationError as error:
        raise UserError(
            f"checkpoint {path}: its training arguments contradict their model {name}:"
            f" {describe(error)}",
            "Give --model a JSON configuration, and save the state_dict alone.",
        ) from error
    labels = () if "num_classes" in changed else card.labels
    how = card.preprocessing
    if isinstance(how, ImagePreprocessing):
        how = deit_preprocessing(config.height)
    return card.model_copy(update={"model": config, "labels": labels, "preprocessing": how})


def prepared(card: CheckpointCard, arguments: TrainingArguments) -> tuple[CheckpointCard, str]:
    """The card with what training arguments say of images, and where its preprocessing comes from.

    Raises:
        UserError: The arguments' channels are not the model's.
    """
    before, config = card.preprocessing, card.model
    if not isinstance(config, ImageClassifierConfig):
        return card, f"the name {card.name}"
    source = f"DeiT's evaluation, by the name {card.name}"
    try:
        if before is None:
            # All or nothing: what training scripts leave out is their model's, and not known.
            before, source = arguments.complete(config.height, config.channels), ""
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


def _filled(
    card: CheckpointCard, labels: tuple[str, ...], preprocessing: Preprocessing
) -> CheckpointCard:
    return card.model_copy(update={"labels": labels, "preprocessing": preprocessing})


def _sequence_preprocessing(name: str, config: SequenceClassifierConfig) -> Preprocessing:
    if config.grid is not None:
        return PixelsPreprocessing(height=config.grid[0], width=config.grid[1])
    if "listops" in name:
        return ListOpsPreprocessing(length=config.length)
    return BytesPreprocessing(length=config.length, documents=config.documents)
