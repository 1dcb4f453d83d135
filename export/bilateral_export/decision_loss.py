"""The loss of decisions that an 8-bit file states, and how it is estimated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from bilateral_export.artifact import document, load_graph
from bilateral_export.errors import UserError
from bilateral_export.intervals import difference_interval, wilson_interval
from bilateral_export.metadata import QUANTIZATION_KEY
from bilateral_export.tensors import Array


class DecisionLoss(BaseModel):
    """How many decisions a model loses against another, on the same items.

    Attributes:
        share: Lost share: of right decisions where classes were given, else of all that differ;
            negative where more are right than before.
        low, high: Its 95 % interval.
        changed: Decisions that differ.
        decisions: How many were compared.
        labelled: Whether classes were given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float
    low: float
    high: float
    changed: int
    decisions: int
    labelled: bool

    def __str__(self) -> str:
        return f"{self.share:.2%} ({self.low:.2%} to {self.high:.2%})"


class StatedLoss(BaseModel):
    """What an 8-bit file says of itself, under a metadata key of its own.

    Attributes:
        max_loss: The largest share of decisions that it may lose: the statement.
        loss: What was measured when it was written.
        runtime: What ran it then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_loss: float
    loss: DecisionLoss
    runtime: str


def decision_loss(wanted: Array, got: Array, labels: Array | None = None) -> DecisionLoss:
    """Return what is lost where decisions `[items, ...]` take the place of others.

    With classes, the interval is Bonett and Price's of a difference of paired proportions; without,
    Wilson's of the share that differs.

    Args:
        wanted: The decisions before.
        got: The decisions after.
        labels: The true classes `[items]` of one decision an item.
    """
    changed = int((wanted != got).sum())
    if labels is None:
        share = changed / wanted.size
        low, high = wilson_interval(changed, wanted.size)
    else:
        truth = labels.reshape(wanted.shape)
        before, after = wanted == truth, got == truth
        lost, won = int((before & ~after).sum()), int((after & ~before).sum())
        share = (lost - won) / wanted.size
        low, high = difference_interval(won, lost, wanted.size)
    return DecisionLoss(
        share=share,
        low=low,
        high=high,
        changed=changed,
        decisions=int(np.size(wanted)),
        labelled=labels is not None,
    )


def read_stated_loss(path: Path) -> StatedLoss | None:
    """Return the loss that a file states; None where it states none.

    Raises:
        UserError: The statement is damaged.
    """
    found = document(load_graph(path, weights=False), QUANTIZATION_KEY)
    if found is None:
        return None
    try:
        return StatedLoss.model_validate(found)
    except ValidationError as error:
        raise UserError(
            f"{path}: its '{QUANTIZATION_KEY}' metadata is not valid",
            "Write the file again with `bilateral quantize`.",
        ) from error
