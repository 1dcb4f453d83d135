"""Any supported checkpoint to a model whose weights are known to fit and to be finite."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from pydantic_core import from_json
from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard, describe, parse_card
from bilateral_export.checkpoint.formats.content import Content
from bilateral_export.checkpoint.formats.native import read_native
from bilateral_export.checkpoint.formats.pickled import read_pickled
from bilateral_export.checkpoint.formats.recognise import Format, identify
from bilateral_export.checkpoint.formats.text import listed, printable, read_document
from bilateral_export.checkpoint.known import architecture, card_of, prepared
from bilateral_export.checkpoint.sizes import differences
from bilateral_export.checkpoint.user_model import (
    card_of_user_model,
    copied,
    defined_model,
    load_weights,
)
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.files import sha256 as sha256_of
from bilateral_export.models.definition import ModelDefinition
from bilateral_export.models.family import Family, FamilyConfig
from bilateral_export.models.registry import build, named, parse_config
from bilateral_export.models.user_code import is_reference
from bilateral_export.models.user_model import UserModel


@dataclass(frozen=True)
class Checkpoint:
    """Weights that fit their configuration.

    Attributes:
        path: Where they were read from.
        sha256: Of that file.
        card: Configuration, labels, preprocessing, licence.
        state: The weights by name, on the CPU.
        weights: The entry of a training checkpoint that they are, such as "model_ema"; None where
            the file holds nothing else.
        other_weights: Entries of that file with other weights, which were not taken.
        preprocessing_source: Where the card's preprocessing comes from; empty where it has none.
        notes: What was changed or left out while reading, one sentence each.
        user_model: The user's own module, with the weights; None for a family of this package.
    """

    path: Path
    sha256: str
    card: CheckpointCard
    state: dict[str, Tensor]
    weights: str | None = None
    other_weights: tuple[str, ...] = ()
    preprocessing_source: str = ""
    notes: tuple[str, ...] = ()
    user_model: UserModel | None = None

    def build_model(self) -> Family:
        """The model with these weights, in evaluation mode, in the dtype of the file."""
        if self.user_model is not None:
            return copied(self.user_model)
        model = build(self.card.model)
        model.load_state_dict(self.state, assign=True)
        return model.requires_grad_(False)


# One reader a format: what it returns is checked here, whichever it is.
_READERS: dict[Format, Callable[[Path, str | None], Content]] = {
    "safetensors": read_native,
    "torch": read_pickled,
}


def load_checkpoint(
    path: Path,
    model: str | ModelDefinition | None = None,
    weights: str | None = None,
    sha256: str | None = None,
) -> Checkpoint:
    """Read a native or a training checkpoint and check that its weights fit.

    Args:
        path: A safetensors file, or what `torch.save` wrote.
        model: A known model's name, or a JSON file with its configuration or a whole card (which
            brings preprocessing and labels); needed only where the checkpoint does not say. It must
            not contradict what the checkpoint says. Or your own model: a definition, or a function
            that returns one, such as "my_model.py:build", which runs that file's code.
        weights: Which weights of a training checkpoint, such as "model_ema".
        sha256: What the file's SHA-256 must be, 64 hexadecimal digits; compared before the file is
            read.

    Raises:
        UserError: The file cannot be read, is unsafe, does not say which model it is, does not fit
            its configuration (sizes that differ are shown with both values, else missing,
            unexpected and wrongly shaped tensors), or holds values that are not finite.
    """
    digest = None if sha256 is None else _checked_digest(path, sha256)
    read = _READERS[identify(path)]
    digest = digest or sha256_of(path)
    content = read(path, weights)
    if isinstance(model, ModelDefinition) or (model is not None and is_reference(model)):
        return _user_checkpoint(path, digest, content, model)
    card, source = _card(path, content, model)
    _check_fit(content.state, card, path)
    return Checkpoint(
        path=path,
        sha256=digest,
        card=card,
        state=content.state,
        weights=content.weights,
        other_weights=content.other_weights,
        preprocessing_source=source if card.preprocessing is not None else "",
        notes=content.notes,
    )


def _user_checkpoint(
    path: Path, digest: str, content: Content, model: str | ModelDefinition
) -> Checkpoint:
    loaded = load_weights(defined_model(model), content, path)
    card = card_of_user_model(loaded)
    return Checkpoint(
        path=path,
        sha256=digest,
        card=card,
        state=content.state,
        weights=content.weights,
        other_weights=content.other_weights,
        preprocessing_source=loaded.config.source if card.preprocessing is not None else "",
        notes=content.notes,
        user_model=loaded,
    )


def _checked_digest(path: Path, wanted: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", wanted):
        raise UserError(
            f"--sha256 {printable(wanted)} is not a SHA-256", "Give its 64 hexadecimal digits."
        )
    digest = sha256_of(require_file(path, "checkpoint"))
    if digest != wanted.lower():
        raise UserError(
            f"checkpoint {path} has the SHA-256 {digest}, not {wanted.lower()}",
            "It is another file or was damaged on its way: copy it again.",
        )
    return digest


def _card(path: Path, content: Content, model: str | None) -> tuple[CheckpointCard, str]:
    """The card that a checkpoint's weights must fit, and where its preprocessing comes from."""
    own, said = content.card, architecture(content.arguments, path)
    if model is None:
        if own is not None:
            return own, "the checkpoint's card"
        if said is None:
            name = content.arguments.model
            known = f" (its training arguments say '{printable(name)}')" if name else ""
            raise UserError(
                f"checkpoint {path} does not say which model it is{known}",
                "Give --model: a JSON configuration, or a name that `bilateral models` lists.",
            )
        return prepared(said, content.arguments)
    wanted, complete = _wanted_card(model)
    ours = own or said
    if ours is not None and ours.model != wanted.model:
        raise UserError(
            f"checkpoint {path} is a {printable(ours.name)} with"
            f" {_differences(ours.model, wanted.model)}, which contradicts --model"
            f" {printable(model)}",
            "Leave --model out, or give the checkpoint it belongs to.",
        )
    if own is not None:
        for part in ("labels", "preprocessing"):
            if getattr(wanted, part) and getattr(wanted, part) != getattr(own, part) and complete:
                raise UserError(
                    f"checkpoint {path} has a card with other {part} than --model"
                    f" {printable(model)}",
                    "Leave --model out, or correct the card.",
                )
        return own, "the checkpoint's card"
    if complete:
        return wanted, f"the card {model}"
    return prepared(said or wanted, content.arguments)


def _wanted_card(model: str) -> tuple[CheckpointCard, bool]:
    """What `--model` asks for, and whether it is a whole card."""
    path = Path(model)
    if path.suffix != ".json":
        return card_of(model, named(model)), False
    text = read_document(path, "configuration")
    try:
        document = from_json(text)  # unlike json.loads, refuses what is nested too deep
    except ValueError as error:
        raise UserError(
            f"configuration {path} is not JSON ({printable(error)})", "Correct it."
        ) from error
    if isinstance(document, dict) and "schema_version" in document:
        return parse_card(text, str(path)), True
    try:
        return card_of(path.stem, parse_config(document)), False
    except ValidationError as error:
        raise UserError(
            f"{path} is not a model configuration: {describe(error)}",
            "`bilateral models --json` shows configurations.",
        ) from error


def _differences(ours: FamilyConfig, theirs: FamilyConfig) -> str:
    if ours.family != theirs.family:
        return f"family {ours.family!r} (not {theirs.family!r})"
    left, right = _flat(ours.model_dump()), _flat(theirs.model_dump())
    return listed(
        [
            f"{key} {left.get(key)!r} (not {right.get(key)!r})"
            for key in dict.fromkeys([*left, *right])
            if left.get(key) != right.get(key)
        ]
    )


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by dotted path, those of the document itself first."""
    flat = {f"{prefix}{k}": v for k, v in document.items() if not isinstance(v, dict)}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
    return flat


def _check_fit(state: dict[str, Tensor], card: CheckpointCard, path: Path) -> None:
    with torch.device("meta"):
        expected = build(card.model).state_dict()
    kinds = {
        "missing": [_shaped(name, expected[name]) for name in expected if name not in state],
        "unexpected": [_shaped(name, state[name]) for name in state if name not in expected],
        "of another shape": [
            f"{name} {list(state[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
        "not floating point": [
            f"{name} is {str(state[name].dtype).removeprefix('torch.')}"
            for name, tensor in expected.items()
            if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
        ],
    }
    kinds = {kind: sorted(names) for kind, names in kinds.items() if names}
    if kinds:
        raise UserError(
            f"checkpoint {path} does not fit model {printable(card.name)}: "
            + _misfit(differences(expected, state), kinds),
            _misfit_fix(expected, state),
        )
    broken = [name for name, tensor in state.items() if not _finite(tensor)]
    if broken:
        raise UserError(
            f"checkpoint {path} has values that are NaN or infinite in {listed(broken)}",
            "The training run diverged; take an earlier checkpoint.",
        )


def _shaped(name: str, tensor: Tensor) -> str:
    return f"{name} {list(tensor.shape)}"


def _misfit(sizes: list[str], kinds: Mapping[str, list[str]]) -> str:
    """In whole sizes where there are any, from which many tensors follow; else by kind."""
    if not sizes:
        return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items())
    count = sum(map(len, kinds.values()))
    kind, names = next(iter(kinds.items()))
    some = f"{count} tensor{'s do' if count > 1 else ' does'} not fit, such as {kind}:"
    return f"the configuration has {'; '.join(sizes)} ({some} {printable(names[0])})"


def _misfit_fix(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    first = {name.partition(".")[0] for name in state}
    if len(first) == 1 and not any(name.startswith(f"{min(first)}.") for name in expected):
        return f"All its names begin with '{printable(min(first))}': save that module's state_dict."
    return "Give the configuration it was trained with."


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
