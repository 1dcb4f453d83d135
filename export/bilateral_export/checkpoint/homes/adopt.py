"""The card of a checkpoint of another home, out of its weights, its documents and `--model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard, describe
from bilateral_export.checkpoint.formats.folder import CONFIG
from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.checkpoint.homes.conversion import (
    Conversion,
    Source,
)
from bilateral_export.checkpoint.homes.wrappers import Found
from bilateral_export.errors import UserError
from bilateral_export.preprocessing import ImagePreprocessing, Preprocessing

# Names of files that say nothing of the model; the folder's name does.
_GENERIC = ("model", "pytorch_model", "checkpoint", "last", "best")
_FEATURES = "there is no classification head; features are exported: --output tokens, cls or pooled"


@dataclass(frozen=True)
class Wanted:
    """What `--model` or the training arguments ask for.

    Attributes:
        card: A known model's, or the user's own; its configuration must not contradict the weights.
        complete: Whether its labels and preprocessing are the user's own.
        values: Fields of a configuration that the weights do not show.
        architecture: A name in the home's words.
    """

    card: CheckpointCard | None = None
    complete: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None


@dataclass(frozen=True)
class Adopted:
    """A converted checkpoint with its card, at the resolution it was trained at."""

    card: CheckpointCard
    state: dict[str, Tensor]
    conversion: Conversion
    preprocessing_source: str
    # The preprocessing at `conversion.run_size`, exactly as the home's documents have it.
    run_preprocessing: Preprocessing | None


def adopt(
    path: Path, found: Found, documents: Mapping[str, Mapping[str, Any]], wanted: Wanted
) -> Adopted:
    """Convert a model of another home and give it a card.

    Args:
        path: The file or folder.
        found: The model in it.
        documents: The JSON documents beside it.
        wanted: What was asked for.

    Raises:
        UserError: The weights are incomplete, of another architecture, quantised, or contradict a
            document or what was asked for.
    """
    config = documents.get(CONFIG, {})
    if isinstance(quantised := config.get("quantization_config"), Mapping):
        method = printable(quantised.get("quant_method", "unknown"))
        raise UserError(
            f"checkpoint {path} is quantised (quant_method {method} in its {CONFIG})",
            "Give the weights it was made from; `bilateral quantize` quantises an exported file.",
        )
    chosen = dict(wanted.values)
    if wanted.card is not None:
        chosen |= wanted.card.model.model_dump(exclude_unset=True, exclude={"family"})
    source = Source(path, found.state, documents, wanted.architecture, chosen)
    conversion = found.home.convert(source)
    notes = list(conversion.notes)
    if found.root:
        notes.insert(0, f"took the prefix {printable(found.root)!r} off its names")
    if getattr(conversion.config, "output", "logits") != "logits" and not conversion.labels:
        notes.append(_FEATURES)
    conversion = dataclasses.replace(
        conversion, left_over=conversion.left_over | found.outside, notes=tuple(notes)
    )
    return _with_card(path, conversion, wanted)


def _with_card(path: Path, conversion: Conversion, wanted: Wanted) -> Adopted:
    asked = wanted.card
    labels, how, said = conversion.labels, conversion.preprocessing, conversion.preprocessing_source
    if asked is not None and (wanted.complete or not labels):
        classes = getattr(conversion.config, "num_classes", 0)
        labels = asked.labels if len(asked.labels) == classes else labels
    if asked is not None and asked.preprocessing is not None and (wanted.complete or how is None):
        how = asked.preprocessing
        said = f"the card {asked.name}" if wanted.complete else f"the name {asked.name}"
    trained = how
    if conversion.run_size is not None and isinstance(how, ImagePreprocessing):
        size = getattr(conversion.config, "image_size")  # noqa: B009 (a union of configurations)
        height, width = (size, size) if isinstance(size, int) else size
        trained = how.at(height, width)
    try:
        card = CheckpointCard(
            name=asked.name if asked is not None else _name(path, conversion, wanted),
            model=conversion.config,
            labels=labels,
            preprocessing=trained,
        )
    except ValidationError as error:
        raise UserError(
            f"checkpoint {path} contradicts what lies beside it: {describe(error)}",
            "Give the weights and the documents of one model, or give --model a card.",
        ) from error
    return Adopted(card, conversion.tensors, conversion, said if how else "", how)


def _name(path: Path, conversion: Conversion, wanted: Wanted) -> str:
    if wanted.architecture:
        return wanted.architecture
    path = path.absolute()
    stem = path.name if path.is_dir() else path.stem
    return path.parent.name if stem.split(".")[0] in _GENERIC and path.parent.name else stem
