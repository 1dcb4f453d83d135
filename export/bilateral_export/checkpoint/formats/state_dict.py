"""Named weights out of what a training script saved: wrappers taken off, counters left out."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilateral_export.checkpoint.formats.text import listed, printable
from bilateral_export.errors import UserError

# What DataParallel, torch.compile, activation checkpointing and FSDP put into names, wherever in a
# model they wrap a module; no model here has a part of such a name.
_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# Attributes under which training code keeps the model itself.
_OUTER = ("model", "net", "network", "backbone")
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
# Names that only such weights have, what they are, what to do.
_FOREIGN_NAMES = (
    (
        r"lora_[AB](\.|$)|lora_(down|up)\.",
        "a LoRA adapter, which holds differences",
        "Merge it into its base model (peft: merge_and_unload) and save that.",
    ),
    (
        r"\.(qweight|qzeros|SCB|weight_format|absmax|quant_map)$|_packed_params",
        "quantised weights",
        "Give the weights they were made from; `bilateral quantize` quantises an exported file.",
    ),
)


@dataclass(frozen=True)
class NamedWeights:
    """Weights by their own names, and what had to be changed to get them."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def is_state(value: Any) -> bool:
    """Whether a value looks like a state dict: tensors, and perhaps counters among them."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(item, Tensor) for item in value.values())
        and all(isinstance(item, Tensor | numbers.Number) for item in value.values())
    )


def named_weights(content: Mapping[Any, Any], path: Path) -> NamedWeights:
    """Take wrappers off the names of a state dict and leave its counters out.

    Args:
        content: What `is_state` accepts.
        path: The file, for messages.

    Raises:
        UserError: A key is not text, two names become the same, a tensor is not one of plain
            numbers in memory, or the names are those of an adapter or of quantised weights.
    """
    if strange := [f"{printable(key)} ({type(key).__name__})" for key in content if _strange(key)]:
        raise UserError(
            f"checkpoint {path} names its tensors by what is not text: {listed(strange)}",
            "Save model.state_dict() of the module itself.",
        )
    for pattern, what, fix in _FOREIGN_NAMES:
        if any(re.search(pattern, name) for name in content):
            raise UserError(f"checkpoint {path} has the names of {what}", fix)
    counters = [name for name, value in content.items() if _is_counter(value)]
    state = {name: value for name, value in content.items() if not _is_counter(value)}
    _check_kinds(state, path)
    notes = [f"left out {listed(counters)}: counters, not weights"] if counters else []
    state = _renamed(state, {name: _unwrapped(name) for name in state}, path)
    while prefix := _common_prefix(state):
        state = _renamed(state, {name: name.removeprefix(prefix) for name in state}, path)
        notes.append(f"took {prefix!r} off every name")
    return NamedWeights({name: value.detach() for name, value in state.items()}, tuple(notes))


def _strange(key: Any) -> bool:
    return not isinstance(key, str)


def _is_counter(value: Any) -> bool:
    """A number, or a whole number in a tensor: how often something was averaged or updated."""
    if not isinstance(value, Tensor):
        return True
    return value.layout == torch.strided and value.ndim == 0 and value.dtype == torch.int64


def _check_kinds(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors whose values are not plain numbers in memory, all kinds in one line."""
    kinds: dict[str, list[object]] = {}
    for name, tensor in state.items():
        if kind := _kind(tensor):
            kinds.setdefault(kind, []).append(name)
    if kinds:
        found = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items())
        raise UserError(
            f"checkpoint {path} has tensors that are not plain floats in memory: {found}",
            "Save them as float32 with tensor.float().contiguous(), dequantised or dense first.",
        )


def _kind(tensor: Tensor) -> str:
    """Why a tensor cannot be read as plain numbers; empty when it can."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}"
    if tensor.dtype not in _DTYPES:
        return str(tensor.dtype).removeprefix("torch.")
    # Repeated rows of a small storage: a file of a kilobyte may say terabytes.
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return "expanded"
    return ""


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _common_prefix(state: Mapping[str, Tensor]) -> str | None:
    for outer in _OUTER:
        if state and all(name.startswith(f"{outer}.") for name in state):
            return f"{outer}."
    return None


def _renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for before, after in names.items():
        if after in renamed:
            raise UserError(
                f"checkpoint {path} has two tensors that are {printable(after)} without the names"
                " of wrappers",
                "Save the state_dict of the unwrapped module.",
            )
        renamed[after] = state[before]
    return renamed
