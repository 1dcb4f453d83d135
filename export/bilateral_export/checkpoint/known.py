"""What is known of a model beyond its weights: preprocessing and class names."""

from __future__ import annotations

from bilateral_export.checkpoint import ade20k
from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.imagenet import CLASSES, deit_preprocessing, imagenet_labels
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.family import ModelConfig
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifierConfig
from bilateral_export.models.zoo import MODELS
from bilateral_export.preprocessing import (
    BytesPreprocessing,
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
    """
    card = CheckpointCard(name=name, model=config)
    if MODELS.get(name) != config:
        return card
    if isinstance(config, ImageClassifierConfig) and name.startswith("deit_"):
        labels = imagenet_labels() if config.num_classes == CLASSES else ()
        return _filled(card, labels, deit_preprocessing(config.image_size))
    if isinstance(config, SequenceClassifierConfig):
        labels = _LABELS[name.rpartition("_")[2]] if name.startswith("lra_") else _DIGITS
        return _filled(card, labels, _sequence_preprocessing(name, config))
    if isinstance(config, SegmenterConfig):
        return _filled(card, ade20k.LABELS, ade20k.ade20k_preprocessing(config.image_size))
    return card


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
