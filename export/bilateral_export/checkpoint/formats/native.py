"""The native format: safetensors, with the card inside its metadata or beside it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard, parse_card
from bilateral_export.checkpoint.formats.content import Content
from bilateral_export.checkpoint.formats.state_dict import named_weights
from bilateral_export.checkpoint.formats.text import printable, read_document
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file

CARD_KEY = "bilateral"


def save_checkpoint(path: Path, state: dict[str, Tensor], card: CheckpointCard) -> None:
    """Write weights and card as one safetensors file, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={CARD_KEY: card.model_dump_json()})


def read_native(path: Path, weights: str | None = None) -> Content:
    """Read a safetensors file and its card: the one inside, else `<stem>.json` beside it.

    Args:
        path: The file.
        weights: Must be None, since there is nothing to choose from.

    Raises:
        UserError: The file is truncated or not a safetensors file, its tensors are not plain
            numbers, or its card is not valid.
    """
    if weights is not None:
        raise UserError(
            f"checkpoint {path} is a safetensors file, which holds one set of weights",
            "Leave --weights out.",
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} is truncated or not a safetensors file ({printable(error, 160)})",
            "Copy it again and compare its size and SHA-256 with the original.",
        ) from error
    named = named_weights(state, path)
    return Content(named.state, named.notes, _card(path, metadata))


def _card(path: Path, metadata: Mapping[str, str]) -> CheckpointCard | None:
    if CARD_KEY in metadata:
        return parse_card(metadata[CARD_KEY], str(path))
    beside = path.with_suffix(".json")
    if beside.is_file():
        return parse_card(read_document(beside, "configuration"), str(beside))
    return None
