"""Any supported checkpoint to a model whose weights are known to fit and to be finite."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from bilateral_export.checkpoint.card import CheckpointCard, describe, parse_card
from bilateral_export.checkpoint.known import card_of
from bilateral_export.checkpoint.native import read_native
from bilateral_export.checkpoint.pickled import read_pickled
from bilateral_export.checkpoint.sizes import differences
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, sha256
from bilateral_export.models.family import ModelConfig, build
from bilateral_export.models.zoo import MODELS, named


@dataclass(frozen=True)
class Checkpoint:
    """Weights that fit their configuration.

    Attributes:
        path: Where they were read from.
        sha256: Of that file.
        card: Configuration, labels, preprocessing, licence.
        state: The weights by name, on the CPU.
        preprocessing_source: Where the card's preprocessing comes from; empty where it has none.
    """

    path: Path
    sha256: str
    card: CheckpointCard
    state: dict[str, Tensor]
    preprocessing_source: str = ""

    def build_model(self) -> nn.Module:
        """The model with these weights, in evaluation mode, in the dtype of the file."""
        model = build(self.card.model)
        model.load_state_dict(self.state, assign=True)
        return model.requires_grad_(False)


def load_checkpoint(path: Path, model: str | None = None, weights: str | None = None) -> Checkpoint:
    """Read a native or a training checkpoint and check that its weights fit.

    Args:
        path: A `.safetensors` file, or what `torch.save` wrote.
        model: A known model's name, or a JSON file with its configuration or a whole card (which
            brings preprocessing and labels); needed only where the checkpoint does not say. It must
            not contradict what the checkpoint says.
        weights: Which weights of a training checkpoint, such as "model_ema".

    Raises:
        UserError: The file cannot be read, is unsafe, does not say which model it is, does not fit
            its configuration (sizes that differ are shown with both values, else every missing,
            unexpected and wrongly shaped tensor), or holds values that are not finite.
    """
    require_file(path, "checkpoint")
    card: CheckpointCard | None
    if path.suffix == ".safetensors":
        state, card = read_native(path)
        said_name = None
    else:
        pickled = read_pickled(path, weights)
        state, card, said_name = pickled.state, None, pickled.model_name
    if model is not None:
        wanted = _wanted_card(model)
        if card is not None and card.model != wanted.model:
            raise UserError(
                f"checkpoint {path} is a {card.name} with {_differences(card.model, wanted.model)},"
                f" which contradicts --model {model}",
                "Leave --model out, or give the checkpoint it belongs to.",
            )
        card = card or wanted
    elif card is None:
        if said_name not in MODELS:
            said = f" (its training arguments say {said_name!r})" if said_name else ""
            raise UserError(
                f"checkpoint {path} does not say which model it is{said}",
                f"Give --model: a JSON configuration, or one of {', '.join(MODELS)}.",
            )
        card = card_of(said_name, named(said_name))
    _check_fit(state, card, path)
    return Checkpoint(path=path, sha256=sha256(path), card=card, state=state)


def _wanted_card(model: str) -> CheckpointCard:
    path = Path(model)
    if path.suffix != ".json":
        return card_of(model, named(model))
    require_file(path, "configuration")
    text = path.read_text(encoding="utf-8", errors="replace")
    with contextlib.suppress(ValueError):
        document = json.loads(text)
        if isinstance(document, dict) and "schema_version" in document:
            return parse_card(text, str(path))
    try:
        adapter: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
        return card_of(path.stem, adapter.validate_json(text))
    except ValidationError as error:
        raise UserError(f"{path} is no model configuration: {describe(error)}") from error


def _differences(ours: ModelConfig, theirs: ModelConfig) -> str:
    left, right = ours.model_dump(), theirs.model_dump()
    return ", ".join(
        f"{key} {left.get(key)!r} (not {right.get(key)!r})"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    )


def _check_fit(state: dict[str, Tensor], card: CheckpointCard, path: Path) -> None:
    with torch.device("meta"):
        expected = build(card.model).state_dict()
    problems = [
        f"missing {name} {list(expected[name].shape)}" for name in expected.keys() - state.keys()
    ]
    problems += [
        f"unexpected {name} {list(state[name].shape)}" for name in state.keys() - expected.keys()
    ]
    problems += [
        f"{name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [
        f"{name} is {str(state[name].dtype).removeprefix('torch.')}, expected floating point"
        for name, tensor in expected.items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    if problems:
        raise UserError(
            f"checkpoint {path} does not fit model {card.name}: "
            + _misfit(differences(expected, state), sorted(problems)),
            "Give the configuration it was trained with.",
        )
    broken = [name for name, tensor in state.items() if not _finite(tensor)]
    if broken:
        raise UserError(
            f"checkpoint {path} has values that are NaN or infinite in {', '.join(broken)}",
            "The training run diverged; take an earlier checkpoint.",
        )


def _misfit(sizes: list[str], tensors: list[str]) -> str:
    """In whole sizes where there are any, from which many tensors follow; else every tensor."""
    if not sizes:
        return "; ".join(tensors)
    count = f"{len(tensors)} tensor{'s do' if len(tensors) > 1 else ' does'} not fit"
    return f"the configuration has {'; '.join(sizes)} ({count}, such as: {tensors[0]})"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
