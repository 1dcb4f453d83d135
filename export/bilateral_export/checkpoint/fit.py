"""Weights against the tensors of a model: what does not fit, and what is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.text import listed, printable
from bilateral_export.checkpoint.sizes import differences
from bilateral_export.errors import UserError
from bilateral_export.models.registry import build


def check_fit(state: Mapping[str, Tensor], card: CheckpointCard, path: Path) -> None:
    """Check that weights are those of a card's model, and finite.

    Raises:
        UserError: They are not: sizes that differ with both values, else tensors by kind.
    """
    with torch.device("meta"):
        expected = build(card.model).state_dict()
    kinds = misfits(state, expected, "expected") | {
        "not floating point": [
            f"{name} is {str(state[name].dtype).removeprefix('torch.')}"
            for name, tensor in expected.items()
            if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
        ]
    }
    if found := {kind: sorted(names) for kind, names in kinds.items() if names}:
        raise UserError(
            f"checkpoint {path} does not fit model {printable(card.name)}: "
            + _misfit(differences(expected, state), found),
            _misfit_fix(expected, state),
        )
    check_finite(state, path)


def misfits(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], wanted: str
) -> dict[str, list[str]]:
    """Return the tensors that are missing, unexpected and of another shape, by kind.

    Args:
        state: The weights.
        expected: The model's tensors; their values do not matter.
        wanted: What stands before a model's shape in a line, such as "expected".
    """
    return {
        "missing": [
            _shaped(name, tensor) for name, tensor in expected.items() if name not in state
        ],
        "unexpected": [
            _shaped(name, tensor) for name, tensor in state.items() if name not in expected
        ],
        "of another shape": [
            f"{_shaped(name, state[name])}, {wanted} {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        UserError: Some are; it names their tensors.
    """
    broken = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if broken:
        raise UserError(
            f"checkpoint {path} has values that are NaN or infinite in {listed(broken)}",
            "The training run diverged; take an earlier checkpoint.",
        )


def by_kind(kinds: Mapping[str, list[str]]) -> str:
    """Return how many tensors of each kind there are, and some of their names, as one line."""
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items())


def _shaped(name: str, tensor: Tensor) -> str:
    return f"{name} {list(tensor.shape)}"


def _misfit(sizes: list[str], kinds: Mapping[str, list[str]]) -> str:
    """In whole sizes where there are any, from which many tensors follow; else by kind."""
    if not sizes:
        return by_kind(kinds)
    count = sum(map(len, kinds.values()))
    kind, names = next(iter(kinds.items()))
    some = f"{count} tensor{'s do' if count > 1 else ' does'} not fit, such as {kind}:"
    return f"the configuration has {'; '.join(sizes)} ({some} {printable(names[0])})"


def _misfit_fix(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    first = {name.partition(".")[0] for name in state}
    if len(first) == 1 and not any(name.startswith(f"{min(first)}.") for name in expected):
        return f"All its names begin with '{printable(min(first))}': save that module's state_dict."
    return "Give the configuration it was trained with."
