"""A checkpoint in memory: weights that fit their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.homes.conversion import Conversion
from bilateral_export.checkpoint.user_model import copied
from bilateral_export.models.family import Family
from bilateral_export.models.registry import build
from bilateral_export.models.user_model import UserModel


@dataclass(frozen=True)
class Checkpoint:
    """Weights that fit their configuration.

    Attributes:
        path: Where they were read from.
        sha256: Of that file.
        card: Configuration, labels, preprocessing, licence.
        state: The weights by name, on the CPU.
        weights: The entry of a training checkpoint that they are, such as "model_ema"; None where
            the file holds nothing else.
        other_weights: Entries of that file with other weights, which were not taken.
        preprocessing_source: Where the card's preprocessing comes from; empty where it has none.
        notes: What was changed or left out while reading, one sentence each.
        conversion: What was found and assumed, where another library wrote the weights.
        user_model: The user's own module, with the weights; None for a family of this package.
        trained: The same weights at the resolution they were trained at, where this is another.
    """

    path: Path
    sha256: str
    card: CheckpointCard
    state: dict[str, Tensor]
    weights: str | None = None
    other_weights: tuple[str, ...] = ()
    preprocessing_source: str = ""
    notes: tuple[str, ...] = ()
    conversion: Conversion | None = None
    user_model: UserModel | None = None
    trained: Checkpoint | None = None

    def build_model(self) -> Family:
        """The model with these weights, in evaluation mode, in the dtype of the file."""
        if self.user_model is not None:
            return copied(self.user_model)
        model = build(self.card.model)
        model.load_state_dict(self.state, assign=True)
        return model.requires_grad_(False)
