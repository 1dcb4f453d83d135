"""Weights for a user's own module, loaded strictly into what the user's code built."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard, describe
from bilateral_export.checkpoint.fit import by_kind, check_finite, misfits
from bilateral_export.checkpoint.formats.content import Content
from bilateral_export.checkpoint.formats.state_dict import named_weights
from bilateral_export.checkpoint.formats.text import printable
from bilateral_export.errors import UserError
from bilateral_export.models.definition import ModelDefinition
from bilateral_export.models.user_code import call_function
from bilateral_export.models.user_model import UserModel, user_model


def defined_model(model: str | ModelDefinition) -> UserModel:
    """Return the model that a definition, or a function in a Python file, describes.

    Args:
        model: A definition, or such as "my_model.py:build", whose code is run.

    Raises:
        UserError: The code fails, with its line; or the definition does not fit.
    """
    if isinstance(model, ModelDefinition):
        return user_model(model, type(model.module).__name__, _directory(type(model.module)))
    made, path = call_function(model)
    if not isinstance(made, ModelDefinition):
        raise UserError(
            f"{model} returns a {type(made).__name__}", "Return bilateral_export.ModelDefinition."
        )
    named = dataclasses.replace(made, name=made.name or path.stem)
    return user_model(named, f"{path.name}:{model.rpartition(':')[2]}", path.parent)


def _directory(kind: type) -> Path:
    """Where a class's code is; the current directory for a class of a notebook."""
    try:
        return Path(inspect.getfile(kind)).resolve().parent
    except (TypeError, OSError):
        return Path.cwd()


def card_of_user_model(model: UserModel) -> CheckpointCard:
    """Return the card that a definition makes.

    Raises:
        UserError: Labels or preprocessing do not fit the module.
    """
    definition = model.definition
    try:
        return CheckpointCard(
            name=definition.name or model.config.source,
            model=model.config,
            labels=tuple(definition.labels),
            preprocessing=definition.preprocessing,
            license=definition.license,
        )
    except ValidationError as error:
        raise UserError(
            f"the definition in {model.config.source} does not fit its module: {describe(error)}",
            "Correct labels or preprocessing.",
        ) from error


def load_weights(model: UserModel, content: Content, path: Path) -> UserModel:
    """Load a file's weights into a user's module, all of them and nothing else, and return it.

    Names are compared without the wrappers that `named_weights` takes off a file's, on both sides.
    A tensor that shares its memory with another one may be left out of the file.

    Raises:
        UserError: Names or shapes differ, or a value is not finite.
    """
    module, source = model.module, model.config.source
    own = module.state_dict()
    tensors = {name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    plain = _plain_names(tensors, path)
    state, expected = dict(content.state), {plain[name]: tensors[name] for name in plain}
    for name, tensor in expected.items():
        if name not in state:
            same = [n for n, t in expected.items() if n in state and _is_same(t, tensor)]
            state |= {name: state[same[0]]} if same else {}
    _check(state, expected, path, source)
    if any(tensor.dtype == torch.float64 for tensor in state.values()):
        module.double()
    module.load_state_dict(own | {name: state[plain[name]] for name in plain})
    return model


def _plain_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """The module's names, each with what a reader of files makes of it; counters have none."""
    # `named_weights` keeps the order: a place is enough to find a name again.
    places = {name: torch.tensor([float(place)]) for place, name in enumerate(tensors)}
    names = list(tensors)
    kept = named_weights(places, path).state
    plain = {names[int(place)]: name for name, place in kept.items()}
    counters = {name for name, t in tensors.items() if t.ndim == 0 and t.dtype == torch.int64}
    return {name: after for name, after in plain.items() if name not in counters}


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.numel() > 0


def _check(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, source: str
) -> None:
    kinds = misfits(state, expected, "the module has") | {
        "of another kind": [
            f"{name} is {str(state[name].dtype).removeprefix('torch.')}"
            for name, tensor in expected.items()
            if name in state and state[name].is_floating_point() != tensor.is_floating_point()
        ]
    }
    if found := {kind: sorted(names) for kind, names in kinds.items() if names}:
        raise UserError(
            f"checkpoint {path} does not fit the module of {printable(source)}: {by_kind(found)}",
            "Build the module with the sizes and the names that were trained.",
        )
    check_finite(state, path)


def copied(model: UserModel) -> UserModel:
    """Return a copy of a loaded model, whose weights may be converted.

    Raises:
        UserError: The module cannot be copied.
    """
    try:
        return copy.deepcopy(model).requires_grad_(False)
    except Exception as error:  # whatever the user's module holds
        raise UserError(
            f"the module of {model.config.source} cannot be copied ({error})",
            "Keep open files, locks and tensors with history out of its attributes.",
        ) from error
