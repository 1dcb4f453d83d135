"""What is known of the named models beyond their weights: preprocessing and class names."""

from __future__ import annotations

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.imagenet import CLASSES, deit_preprocessing, imagenet_labels
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.zoo import MODELS, ModelConfig


def card_of(name: str, config: ModelConfig) -> CheckpointCard:
    """The card of a checkpoint that brings none.

    A DeiT of `MODELS` gets DeiT's evaluation preprocessing and ImageNet's class names; of a
    configuration from elsewhere nothing is guessed.
    """
    card = CheckpointCard(name=name, model=config)
    if not isinstance(config, ImageClassifierConfig):
        return card
    if not name.startswith("deit_") or MODELS.get(name) != config:
        return card
    labels = imagenet_labels() if config.num_classes == CLASSES else ()
    preprocessing = deit_preprocessing(config.image_size)
    return card.model_copy(update={"labels": labels, "preprocessing": preprocessing})
