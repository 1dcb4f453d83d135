"""Class names from a file, for checkpoints that carry none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bilateral_export.checkpoint.formats.text import has_control_character, printable, read_document
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError


def with_labels(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return the checkpoint with a text file's class names, one a line, in the logits' order.

    Raises:
        UserError: The file cannot be read, does not name every class, or the model has no classes.
    """
    classes = checkpoint.card.model.classes
    if not classes:
        raise UserError(f"model {checkpoint.card.name} has no classes", "Leave --labels out.")
    card = checkpoint.card.model_copy(update={"labels": _read(path, classes)})
    return dataclasses.replace(checkpoint, card=card)


def _read(path: Path, classes: int) -> tuple[str, ...]:
    labels = tuple(line.strip() for line in read_document(path, "labels file").splitlines())
    if len(labels) != classes or "" in labels:
        blank = f", {labels.count('')} of them blank" if "" in labels else ""
        raise UserError(
            f"labels file {path} has {len(labels)} lines{blank}; the model has {classes} classes",
            "Write one name a line, in the order of the logits.",
        )
    if strange := next(filter(has_control_character, labels), None):
        raise UserError(
            f"labels file {path} has a name with control characters: {printable(strange)}",
            "Write one name a line.",
        )
    return labels
