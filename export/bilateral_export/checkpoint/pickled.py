"""The dicts that DeiT-style training scripts save with `torch.save`, read without running code."""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilateral_export.errors import UserError

# Where training scripts keep the weights, in the order they are looked for.
WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema")
# Wrappers (DataParallel, torch.compile) that put a prefix before every name.
WRAPPERS = ("module.", "_orig_mod.")

# Plain data that training scripts store beside the weights; none of it runs code when unpickled.
_numpy_scalar = np.float64(0).__reduce__()[0]
_SAFE: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    _numpy_scalar,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]


@dataclass(frozen=True)
class PickledCheckpoint:
    """Weights out of a pickled training checkpoint, and the model's name where `args` has it."""

    state: dict[str, Tensor]
    model_name: str | None


def read_pickled(path: Path, weights: str | None) -> PickledCheckpoint:
    """Read a `torch.save` file, allowing tensors and plain data only.

    Args:
        path: The file.
        weights: Which entry holds the weights, such as "model_ema"; None takes the first of
            `WEIGHT_KEYS` that is there, or the file itself when it is a bare state dict.

    Raises:
        UserError: The file is truncated, is no checkpoint, wants to run code, or has no weights.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        raise UserError(
            f"checkpoint {path} is truncated or no checkpoint at all",
            "Copy it again and compare its size and SHA-256 with the original.",
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors",
            "Save model.state_dict().",
        )
    return PickledCheckpoint(
        state=_strip_wrappers(_find_weights(content, weights, path)),
        model_name=_model_name(content.get("args")),
    )


def _refusal(path: Path, reason: str) -> UserError:
    if "Unsupported global" in reason or "Unsupported class" in reason or "GLOBAL" in reason:
        culprit = reason.partition("GLOBAL ")[2].split(" ")[0] or "an unknown object"
        return UserError(
            f"checkpoint {path} wants to run code when it is read ({culprit}): refused",
            "If you trust it, load it in your training code and save its state_dict() alone.",
        )
    return UserError(
        f"checkpoint {path} is truncated or no checkpoint at all",
        "Give a .safetensors file or what torch.save wrote.",
    )


def _find_weights(content: Mapping[str, Any], weights: str | None, path: Path) -> dict[str, Tensor]:
    present = [key for key in WEIGHT_KEYS if _is_state(content.get(key))]
    if weights is not None:
        if weights not in content or not _is_state(content[weights]):
            raise UserError(
                f"checkpoint {path} has no weights under {weights!r}",
                f"It has: {', '.join(present) or 'none'}.",
            )
        return dict(content[weights])
    if present:
        return dict(content[present[0]])
    if _is_state(content):
        return dict(content)
    raise UserError(
        f"checkpoint {path} has no weights: its keys are {', '.join(map(str, content))}",
        f"Expected a state dict, or one under {', '.join(WEIGHT_KEYS)}.",
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )


def _strip_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPERS * 2:  # either wrapper may be the outer one
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _model_name(arguments: Any) -> str | None:
    name = getattr(arguments, "model", None)
    return name if isinstance(name, str) else None
