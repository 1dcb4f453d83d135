"""Which weights were exported is said, kept with the file, and asked for no second time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.conftest import DIGITS, ROOT, Bilateral
from tests.cli.test_bad_input import refused

from bilateral_export.artifact import read_metadata
from bilateral_export.checkpoint.exported import load_exported
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import METADATA_KEY

IMAGE = ROOT / "export" / "checkpoints" / "digits" / "3-0.png"
MODEL = ("--model", "digits_bilateral")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint with raw and averaged weights."""
    path = tmp_path_factory.mktemp("weights") / "trained.pth"
    state = load_file(DIGITS)
    averaged = {name: tensor * 1.1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": averaged}, path)
    return path


@pytest.fixture(scope="module")
def ema(trained: Path) -> Path:
    """The averaged weights, exported with the preprocessing of the committed checkpoint."""
    card = trained.with_name("card.json")
    card.write_text(load_checkpoint(DIGITS).card.model_dump_json())
    loaded = load_checkpoint(trained, model=str(card), weights="model_ema")
    return export_onnx(loaded, trained.with_name("ema.onnx")).path


def test_the_weights_that_were_taken_and_those_that_were_not_are_said(
    bilateral: Bilateral, trained: Path, ema: Path, tmp_path: Path
) -> None:
    shown = bilateral("export", trained, tmp_path / "raw.onnx", *MODEL).out
    assert "weights: model\n" in shown
    assert "not taken: the weights under model_ema; --weights model_ema takes them" in shown
    given = bilateral(
        "export", trained, tmp_path / "ema.onnx", *MODEL, "--weights", "model_ema", "--json"
    ).json
    assert (given["weights"], given["other_weights"]) == ("model_ema", ["model"])
    assert given["checkpoint_sha256"] == hashlib.sha256(trained.read_bytes()).hexdigest()
    assert (given["preprocessing"], given["preprocessing_source"]) == (None, "")
    assert read_metadata(tmp_path / "ema.onnx").weights == "model_ema"
    assert "weights model_ema" in bilateral("inspect", ema).out


def test_parity_takes_the_weights_that_were_exported(
    bilateral: Bilateral, trained: Path, ema: Path
) -> None:
    card = ("--model", trained.with_name("card.json"))
    assert bilateral("parity", trained, ema, *card, "--batches", "2").code == 0
    line = refused(bilateral("parity", trained, ema, *card, "--weights", "model"))
    assert "exported from the weights 'model_ema', and --weights says 'model'" in line


def test_a_file_that_does_not_say_its_weights_is_compared_with_those_asked_for(
    trained: Path, ema: Path
) -> None:
    older = read_metadata(ema).model_copy(update={"weights": None})
    assert load_exported(trained, older, MODEL[1]).weights == "model"
    assert load_exported(trained, older, MODEL[1], "model_ema").weights == "model_ema"
    with pytest.raises(UserError, match="no weights under 'other'"):
        load_exported(trained, older, MODEL[1], "other")


def test_the_same_weights_in_a_file_of_their_own_are_compared_without_a_choice(
    ema: Path, tmp_path: Path
) -> None:
    averaged = {name: tensor * 1.1 for name, tensor in load_file(DIGITS).items()}
    save_file(averaged, tmp_path / "averaged.safetensors")
    metadata = read_metadata(ema)
    assert load_exported(tmp_path / "averaged.safetensors", metadata, MODEL[1]).weights is None


def test_files_of_versions_without_the_key_still_load(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    entry = next(prop for prop in model.metadata_props if prop.key == METADATA_KEY)
    document = json.loads(entry.value)
    assert document.pop("weights") is None
    entry.value = json.dumps(document)
    onnx.save(model, tmp_path / "older.onnx")
    assert read_metadata(tmp_path / "older.onnx").weights is None
    assert bilateral("inspect", tmp_path / "older.onnx").code == 0


def test_explain_shows_the_weights_of_both_kinds_of_file(
    bilateral: Bilateral, trained: Path, ema: Path, tmp_path: Path
) -> None:
    options = ("--model", trained.with_name("card.json"), "--weights", "model_ema")
    assert bilateral("explain", IMAGE, ema, "--out", tmp_path / "graph").code == 0
    assert bilateral("explain", IMAGE, trained, "--out", tmp_path / "torch", *options).code == 0
    assert "fp32, weights model_ema" in (tmp_path / "graph" / "index.html").read_text()
    assert "trained.pth (model_ema)" in (tmp_path / "torch" / "index.html").read_text()


def test_export_checks_the_hash_that_is_given_and_says_the_preprocessing(
    bilateral: Bilateral, tmp_path: Path
) -> None:
    digest = hashlib.sha256(DIGITS.read_bytes()).hexdigest()
    exported = tmp_path / "digits.onnx"
    line = refused(bilateral("export", DIGITS, exported, "--sha256", "0" * 64))
    assert f"has the SHA-256 {digest}, not {'0' * 64}" in line
    assert "is not a SHA-256" in refused(bilateral("export", DIGITS, exported, "--sha256", "abc"))
    assert list(tmp_path.iterdir()) == []
    shown = bilateral("export", DIGITS, exported, "--sha256", digest).out
    assert "shorter side to 8 (bicubic), centre 8x8, mean 0.3, deviation 0.35; from" in shown
    assert "; from the checkpoint's card" in shown
    assert read_metadata(exported).checkpoint_sha256 == digest


def test_a_flipped_bit_of_a_safetensors_file_is_seen_by_its_hash(
    bilateral: Bilateral, tmp_path: Path
) -> None:
    whole = DIGITS.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    digest = hashlib.sha256(whole).hexdigest()
    line = refused(bilateral("export", damaged, tmp_path / "d.onnx", "--sha256", digest))
    assert "It is another file or was damaged on its way" in line


def test_names_from_outside_are_no_markup(bilateral: Bilateral, tmp_path: Path) -> None:
    loaded = load_checkpoint(DIGITS)
    card = loaded.card.model_copy(update={"name": "[bold]x[/red]"})
    save_checkpoint(tmp_path / "c.safetensors", loaded.state, card)
    made = bilateral("export", tmp_path / "c.safetensors", tmp_path / "[red]m.onnx")
    assert made.code == 0
    assert "[red]m.onnx: [bold]x[/red], fp32" in made.out
