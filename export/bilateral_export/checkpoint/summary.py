"""A summary of a checkpoint: what was found in it, what was taken, what was assumed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilateral_export.checkpoint.formats.recognise import identify
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.preprocessing import preprocessing_text

_FORMATS = {"safetensors": "safetensors", "torch": "torch.save", "folder": "folder"}


@dataclass(frozen=True)
class CheckpointSummary:
    """What `bilateral inspect` shows of a checkpoint.

    Attributes:
        path: The file or folder.
        sha256: Of it.
        format: How it is stored: "safetensors", "torch.save" or "folder".
        source: Whose names it has: this package's, or a library's.
        architecture: Its model, in that library's words.
        model: The configuration.
        dtypes: Number of values by type.
        mapped: Tensors that were taken.
        left_over: Tensors that were not, with the reason of each.
        assumptions: What the weights do not show, each with its source.
        weights: The entry or prefix that was taken; None where there is no other.
        other_weights: Entries that were not.
        labels: Number of class names.
        preprocessing: How inputs are prepared, and who says so.
        notes: What was changed or left out while reading.
    """

    path: Path
    sha256: str
    format: str
    source: str
    architecture: str
    model: dict[str, Any]
    dtypes: dict[str, int]
    mapped: int
    left_over: dict[str, str]
    assumptions: tuple[str, ...]
    weights: str | None
    other_weights: tuple[str, ...]
    labels: int
    preprocessing: str
    notes: tuple[str, ...]


def summarise_checkpoint(
    path: Path, model: str | None = None, weights: str | None = None
) -> CheckpointSummary:
    """Return what a checkpoint is and how it would be exported.

    Args:
        path: As in `load_checkpoint`, which checks it.
        model: The same.
        weights: The same.

    Raises:
        UserError: As `load_checkpoint`.
    """
    loaded = load_checkpoint(path, model=model, weights=weights)
    found, card = loaded.conversion, loaded.card
    dtypes: Counter[str] = Counter()
    for tensor in loaded.state.values():
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return CheckpointSummary(
        path=path,
        sha256=loaded.sha256,
        format=_FORMATS[identify(path)],
        source="bilateral" if found is None else found.home,
        architecture=card.name if found is None else found.architecture,
        model=card.model.model_dump(mode="json"),
        dtypes=dict(dtypes),
        mapped=len(loaded.state) if found is None else found.mapped,
        left_over={} if found is None else found.left_over,
        assumptions=() if found is None else found.assumptions,
        weights=loaded.weights,
        other_weights=loaded.other_weights,
        labels=len(card.labels),
        preprocessing=preprocessing_text(card.preprocessing, loaded.preprocessing_source),
        notes=loaded.notes,
    )
