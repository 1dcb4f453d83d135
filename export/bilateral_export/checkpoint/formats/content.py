"""What the reader of each format returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from bilateral_export.checkpoint.arguments import TrainingArguments
from bilateral_export.checkpoint.card import CheckpointCard


@dataclass(frozen=True)
class Content:
    """What a checkpoint's file holds, whatever its format.

    Attributes:
        state: The weights by name, on the CPU.
        notes: What was changed or left out while reading, one sentence each.
        card: What the file says of itself, where it does.
        weights: The entry they were under; None where the file holds nothing else.
        other_weights: Entries with other weights, which were not taken.
        arguments: What the training arguments beside them say.
    """

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    card: CheckpointCard | None = None
    weights: str | None = None
    other_weights: tuple[str, ...] = ()
    arguments: TrainingArguments = field(default_factory=TrainingArguments)
