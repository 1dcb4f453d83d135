"""Weights are found under the names that training code gives them, or refused by their kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import build, named

MODEL = "digits_plain"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return build(named(MODEL)).state_dict()


def _loaded(content: Any, path: Path, weights: str | None = None) -> Checkpoint:
    torch.save(content, path)
    return load_checkpoint(path, model=MODEL, weights=weights)


def _prefixed(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def _inside(wrapper: str) -> Callable[[str], str]:
    return lambda name: re.sub(r"^(blocks\.\d+\.)", rf"\1{wrapper}.", name)


@pytest.mark.parametrize(
    ("rename", "note"),
    [
        (_prefixed("module."), ""),
        (_prefixed("module._orig_mod."), ""),
        (_prefixed("_fsdp_wrapped_module._checkpoint_wrapped_module."), ""),
        (_inside("_orig_mod"), ""),
        (_inside("_checkpoint_wrapped_module"), ""),
        (_inside("_fsdp_wrapped_module._checkpoint_wrapped_module"), ""),
        (_inside("module"), ""),
        (_prefixed("model."), "took 'model.' off every name"),
        (_prefixed("net.module.backbone."), "took 'backbone.' off every name"),
        (_prefixed("model._orig_mod."), "took 'model.' off every name"),
    ],
)
def test_wrappers_are_taken_off_wherever_they_are(
    state: State, tmp_path: Path, rename: Callable[[str], str], note: str
) -> None:
    wrapped = {rename(name): tensor for name, tensor in state.items()}
    loaded = _loaded({"model": wrapped}, tmp_path / "c.pth")
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in state.items())
    assert note in "; ".join(loaded.notes)
    save_file(wrapped, tmp_path / "c.safetensors")
    assert load_checkpoint(tmp_path / "c.safetensors", model=MODEL).notes == loaded.notes


@pytest.mark.parametrize(
    "counters",
    [{"num_updates": 3}, {"n_averaged": torch.tensor(3)}, {"decay": 0.99, "updates": True}],
)
def test_counters_among_the_weights_are_left_out_and_said(
    state: State, tmp_path: Path, counters: dict[str, Any]
) -> None:
    averaged = counters | {f"module.{name}": tensor for name, tensor in state.items()}
    loaded = _loaded({"model_ema": averaged}, tmp_path / "c.pth")
    assert loaded.state.keys() == state.keys()
    assert loaded.notes == (f"left out {', '.join(counters)}: counters, not weights",)


def test_two_tensors_that_become_one_are_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two tensors that are head\.bias without"):
        _loaded(state | {"module.head.bias": state["head.bias"]}, tmp_path / "c.pth")


def test_the_key_of_the_weights_and_those_not_taken_are_known(state: State, tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    content = {"epoch": 3, "model_ema": averaged, "model": state, "optimizer": {"state": {}}}
    raw = _loaded(content, tmp_path / "c.pth")
    assert (raw.weights, raw.other_weights) == ("model", ("model_ema",))
    ema = _loaded(content, tmp_path / "c.pth", weights="model_ema")
    assert (ema.weights, ema.other_weights) == ("model_ema", ("model",))
    assert torch.equal(ema.state["norm.bias"], state["norm.bias"] + 1)
    bare = _loaded(state, tmp_path / "c.pth")
    assert (bare.weights, bare.other_weights) == (None, ())


@pytest.mark.parametrize("key", ["module", "net", "state_dict_ema", "student"])
def test_other_entries_with_the_only_weights_are_found(
    state: State, tmp_path: Path, key: str
) -> None:
    assert _loaded({key: state, "ds_version": "0.14"}, tmp_path / "c.pth").weights == key


def test_which_of_several_unknown_entries_must_be_said(state: State, tmp_path: Path) -> None:
    content = {"student": state, "teacher": state}
    with pytest.raises(UserError, match=r"several sets of weights: student, teacher.*--weights"):
        _loaded(content, tmp_path / "c.pth")
    assert _loaded(content, tmp_path / "c.pth", weights="teacher").weights == "teacher"
    with pytest.raises(UserError, match=r"no weights under 'ema'.*It has: student, teacher"):
        _loaded(content, tmp_path / "c.pth", weights="ema")


def test_a_safetensors_file_has_no_choice_of_weights(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"one set of weights.*Leave --weights out"):
        load_checkpoint(tmp_path / "c.safetensors", model=MODEL, weights="model")


@pytest.mark.parametrize("key", [0, b"head.bias", ("head", "bias"), None, 1.5])
def test_keys_that_are_not_text_are_refused(state: State, tmp_path: Path, key: Any) -> None:
    with pytest.raises(UserError, match=f"by what is not text: .*{type(key).__name__}"):
        _loaded(state | {key: torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="has no weights: its keys are"):
        _loaded({key: state}, tmp_path / "c.pth")


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "1 sparse: head.weight": lambda tensor: tensor.to_sparse(),
    "1 quantised: head.weight": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "1 on the device meta: head.weight": lambda tensor: tensor.to("meta"),
    "1 complex64: head.weight": lambda tensor: tensor.to(torch.complex64),
    "1 float8_e4m3fn: head.weight": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "1 float8_e5m2: head.weight": lambda tensor: tensor.to(torch.float8_e5m2),
    "1 float8_e8m0fnu: head.weight": lambda tensor: tensor.to(torch.float8_e8m0fnu),
    "1 expanded: head.weight": lambda tensor: torch.zeros(1).expand(tensor.shape),
    "1 nested: head.weight": lambda t: torch.nested.nested_tensor([t[0], t[1]]),
    "1 not floating point: head.weight is int64": lambda tensor: tensor.long(),
    "1 not floating point: head.weight is bool": lambda tensor: tensor.bool(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_not_plain_floats_are_refused_by_kind(
    state: State, tmp_path: Path, kind: str
) -> None:
    with pytest.raises(UserError, match=re.escape(kind)):
        _loaded(state | {"head.weight": KINDS[kind](state["head.weight"])}, tmp_path / "c.pth")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "complex64", "int64"])
def test_both_formats_refuse_the_same_kinds(state: State, tmp_path: Path, dtype: str) -> None:
    changed = state | {"head.weight": state["head.weight"].to(getattr(torch, dtype))}
    save_file(changed, tmp_path / "c.safetensors")
    torch.save(changed, tmp_path / "c.pth")
    refusals = []
    for name in ("c.safetensors", "c.pth"):
        with pytest.raises(UserError) as refusal:
            load_checkpoint(tmp_path / name, model=MODEL)
        refusals.append(str(refusal.value).replace(name, "c"))
    assert refusals[0] == refusals[1]


def test_parameters_and_doubles_are_weights(state: State, tmp_path: Path) -> None:
    content = {name: torch.nn.Parameter(tensor.double()) for name, tensor in state.items()}
    loaded = _loaded(content, tmp_path / "c.pth")
    assert {tensor.dtype for tensor in loaded.state.values()} == {torch.float64}
    assert not any(tensor.requires_grad for tensor in loaded.state.values())


def test_a_refusal_names_at_most_five_tensors_and_how_many_more(
    state: State, tmp_path: Path
) -> None:
    for content, shown in (
        ({f"x.{i}.{k}": v for i in range(20) for k, v in state.items()}, "and 15 more"),
        (
            {f"student.{k}": v for k, v in state.items() if "patch" not in k},
            "All its names begin with 'student'",
        ),
        ({k: v * float("nan") for k, v in state.items()}, "and 51 more"),
        (state | {"n" * 10_000: torch.zeros(1)}, "1 unexpected: nnn"),
        (state | {"a\x1b[31m\n[bold]": torch.zeros(1)}, r"a\x1b[31m\n[bold] [1]"),
        ({k: v.to(torch.float8_e5m2) for k, v in state.items()}, "and 51 more"),
    ):
        with pytest.raises(UserError) as refusal:
            _loaded(content, tmp_path / "c.pth")
        message = str(refusal.value)
        assert shown in message
        assert message.isprintable()
        assert len(message) - len(str(tmp_path / "c.pth")) < 600
