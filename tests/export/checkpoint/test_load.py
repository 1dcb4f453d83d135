"""Checkpoints come in with their configuration, or are refused in one line that says why."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import build, named

PLAIN = "digits_plain"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(named(PLAIN)).state_dict()


def training_dict(state: dict[str, torch.Tensor], **extra: Any) -> dict[str, Any]:
    """What DeiT's main.py saves."""
    return {
        "model": state,
        "model_ema": {name: tensor + 1 for name, tensor in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 299,
        "best_accuracy": np.float64(0.81),
        "args": argparse.Namespace(model=PLAIN, output_dir=Path("runs"), lr=5e-4),
        **extra,
    }


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_the_committed_checkpoint_reaches_its_accuracy(
    digits: Checkpoint, heldout: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = heldout
    with torch.no_grad():
        predicted = digits.build_model()(torch.from_numpy(images)).argmax(-1).numpy()
    accuracy = float((predicted == labels).mean())
    assert accuracy >= 0.97
    assert accuracy == pytest.approx(digits.card.training["heldout_accuracy"], abs=1e-4)


def test_a_native_checkpoint_comes_back_as_it_was_saved(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    card = CheckpointCard(name=PLAIN, model=named(PLAIN), labels=tuple("abcdefghij"), license="MIT")
    save_checkpoint(tmp_path / "c.safetensors", state, card)
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded.card == card
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in state.items())
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_the_configuration_may_lie_beside_the_weights(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    save_file(state, tmp_path / "c.safetensors")
    card = CheckpointCard(name=PLAIN, model=named(PLAIN))
    (tmp_path / "c.json").write_text(card.model_dump_json())
    assert load_checkpoint(tmp_path / "c.safetensors").card == card


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_deit_training_checkpoint_says_its_model_itself(
    tmp_path: Path, state: dict[str, torch.Tensor], prefix: str
) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    path = saved(training_dict(wrapped), tmp_path / "c.pth")
    loaded = load_checkpoint(path)
    assert loaded.card.model == named(PLAIN)
    assert torch.equal(loaded.state["norm.bias"], state["norm.bias"])
    averaged = load_checkpoint(path, weights="model_ema") if not prefix else loaded
    assert torch.equal(averaged.state["norm.bias"], state["norm.bias"] + (not prefix))


def test_a_bare_state_dict_needs_a_name_or_a_configuration(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = saved(state, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"does not say which model it is.*Give --model"):
        load_checkpoint(path)
    assert load_checkpoint(path, model=PLAIN).card.name == PLAIN
    configuration = tmp_path / "mine.json"
    configuration.write_text(named(PLAIN).model_dump_json())
    assert load_checkpoint(path, model=str(configuration)).card.model == named(PLAIN)


def test_all_misfits_are_listed_in_one_error(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    del state["norm.weight"]
    state["extra.bias"] = torch.zeros(3)
    state["head.bias"] = torch.zeros(11)
    path = saved(state, tmp_path / "c.pt")
    with pytest.raises(UserError) as refusal:
        load_checkpoint(path, model=PLAIN)
    message = str(refusal.value)
    assert "1 missing: norm.weight [48]" in message
    assert "1 unexpected: extra.bias [3]" in message
    assert "1 of another shape: head.bias [11], expected [10]" in message


def test_a_name_that_contradicts_the_checkpoint_is_refused_with_both_shown(
    digits: Checkpoint,
) -> None:
    with pytest.raises(UserError, match=r"digits_bilateral.*gaussian.*\(not .*contradicts"):
        load_checkpoint(digits.path, model=PLAIN)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/bilateral-was-here",)


def truncated(path: Path, keep: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = Path("/tmp/bilateral-was-here")
    witness.unlink(missing_ok=True)
    path = saved({"model": {"a": torch.zeros(1)}, "hook": _RunsCode()}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"wants to run code.*posix\.system.*refused"):
        load_checkpoint(path, model=PLAIN)
    assert not witness.exists()


def test_broken_files_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    card = CheckpointCard(name=PLAIN, model=named(PLAIN))
    native = tmp_path / "t.safetensors"
    save_checkpoint(native, state, card)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("these are no weights")
    refusals = {
        truncated(native): "truncated or not a safetensors file",
        truncated(saved(state, tmp_path / "t.pth")): "its list of records cannot be read",
        tmp_path / "text.pth": "truncated or not a checkpoint",
        tmp_path / "empty.pth": "is empty",
        tmp_path: "is a directory",
        tmp_path / "nowhere.pth": "does not exist",
        saved([1, 2], tmp_path / "list.pth"): "holds a list",
        saved({"epoch": 3}, tmp_path / "epoch.pth"): "has no weights: its keys are epoch",
    }
    for path, message in refusals.items():
        with pytest.raises(UserError, match=message):
            load_checkpoint(path, model=PLAIN)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, state: dict[str, torch.Tensor], value: float
) -> None:
    state["blocks.1.mlp.fc1.bias"][3] = value
    path = saved(state, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"NaN or infinite in blocks\.1\.mlp\.fc1\.bias"):
        load_checkpoint(path, model=PLAIN)


def test_weights_that_are_whole_numbers_are_refused(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "c.safetensors"
    save_file(state | {"head.bias": state["head.bias"].int()}, path)
    with pytest.raises(UserError, match=r"1 not floating point: head\.bias is int32"):
        load_checkpoint(path, model=PLAIN)


def test_a_card_that_is_not_valid_names_the_field(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    document = json.loads(CheckpointCard(name=PLAIN, model=named(PLAIN)).model_dump_json())
    image = {"kind": "image", "height": 8, "width": 8, "channels": 1, "resize": 8}
    image |= {"mean": [0.5], "std": [0.5]}
    save_file(state, tmp_path / "c.safetensors")
    for change, message in [
        ({"schema_version": 9}, "schema_version"),
        ({"model": document["model"] | {"depth": -1}}, "model.*depth"),
        ({"colour": "red"}, "colour"),
        ({"labels": ["a", "b"]}, "2 labels, the model has 10 classes"),
        ({"labels": ["a\nb", *"cdefghijk"]}, "is not one line"),
        (
            {"preprocessing": image | {"height": 16}},
            r"makes images \[1, 16, 8\], the model",
        ),
        ({"preprocessing": image | {"mean": [0.5] * 3}}, "1 channels, 3 means and 1 deviations"),
        ({"preprocessing": image | {"std": [0.0]}}, r"std\.0.*greater than 0"),
        ({"model": document["model"] | {"attention": {"bandwidth": [0.0, 2.0]}}}, "bandwidth"),
    ]:
        (tmp_path / "c.json").write_text(json.dumps(document | change))
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / "c.safetensors")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match="not valid"):
        load_checkpoint(tmp_path / "c.safetensors")
