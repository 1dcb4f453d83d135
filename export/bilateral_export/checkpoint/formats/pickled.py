"""The dicts that training scripts save with `torch.save`, read without running code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bilateral_export.checkpoint.arguments import training_arguments
from bilateral_export.checkpoint.formats.content import Content
from bilateral_export.checkpoint.formats.plain_data import SAFE_GLOBALS
from bilateral_export.checkpoint.formats.records import check_records
from bilateral_export.checkpoint.formats.state_dict import is_state, named_weights
from bilateral_export.checkpoint.formats.text import listed, printable
from bilateral_export.errors import UserError

# Where training scripts keep the weights, in the order they are looked for.
WEIGHT_KEYS = (
    *("model", "state_dict", "model_state_dict", "module", "net", "network", "weights"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)
_PROTOCOL = 2  # torch.save's default, and the only one its safe reader knows


def read_pickled(path: Path, weights: str | None) -> Content:
    """Read a `torch.save` file, allowing tensors and plain data only.

    Args:
        path: The file.
        weights: Which entry holds the weights, such as "model_ema"; None takes the first of
            `WEIGHT_KEYS` that is there, the only one there is, or the file itself when it is a
            bare state dict.

    Raises:
        UserError: The file is damaged, wants to run code, or has no weights, or several and
            nothing says which.
    """
    content = _unpickled(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"checkpoint {path} holds a {printable(type(content).__name__)}, not a dictionary of"
            " tensors",
            "Save model.state_dict().",
        )
    states = {key: v for key, v in content.items() if isinstance(key, str) and is_state(v)}
    key = _chosen(content, list(states), weights, path)
    named = named_weights(content if key is None else states[key], path)
    return Content(
        state=named.state,
        notes=named.notes,
        weights=key,
        other_weights=tuple(printable(other) for other in states if other != key),
        arguments=training_arguments(content.get("args"), path),
    )


def _unpickled(path: Path) -> Any:
    protocol = check_records(path) if zipfile.is_zipfile(path) else _PROTOCOL
    if protocol != _PROTOCOL:
        raise UserError(
            f"checkpoint {path} was pickled with protocol {protocol}, which cannot be read without"
            " running code",
            f"Save it with torch.save's default protocol, {_PROTOCOL}.",
        )
    try:
        with (
            path.open("rb") as stream,  # by its name, torch would take it for another format
            warnings.catch_warnings(),
            torch.serialization.safe_globals(SAFE_GLOBALS),
        ):
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else ""
        raise _refusal(path, reason) from error


def _refusal(path: Path, reason: str) -> UserError:
    if "GLOBAL " in reason or "Unsupported class" in reason:
        culprit = reason.partition("GLOBAL ")[2].split(" ")[0] or "an unknown object"
        return UserError(
            f"checkpoint {path} wants to run code when it is read ({printable(culprit)}): refused",
            "If you trust it, load it in your training code and save its state_dict() alone.",
        )
    return UserError(
        f"checkpoint {path} is truncated or not a checkpoint at all",
        "Copy it again and compare its size and SHA-256 with the original.",
    )


def _chosen(
    content: Mapping[Any, Any], present: list[str], weights: str | None, path: Path
) -> str | None:
    """The entry with the weights; None where they are the whole file."""
    if weights is not None:
        if weights not in present:
            raise UserError(
                f"checkpoint {path} has no weights under '{printable(weights)}'",
                f"It has: {listed(present) or 'none'}.",
            )
        return weights
    if is_state(content):
        return None
    known = [key for key in WEIGHT_KEYS if key in present]
    if known:
        return known[0]
    if len(present) == 1:
        return present[0]
    if present:
        raise UserError(
            f"checkpoint {path} has several sets of weights: {listed(present)}",
            "Say which with --weights.",
        )
    raise UserError(
        f"checkpoint {path} has no weights: its keys are {listed(list(content)) or 'none'}",
        f"Expected a state dict, or one under {', '.join(WEIGHT_KEYS[:3])}.",
    )
