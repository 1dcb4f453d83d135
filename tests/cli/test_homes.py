"""Checkpoints of other libraries on the command line: inspected, exported, compared, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.builders.homes import Sizes, Timm, huggingface_config, huggingface_state, timm_state
from tests.cli.conftest import DIGITS, Bilateral
from tests.cli.test_bad_input import refused

SIZES = Sizes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of a DINOv2."""
    path = tmp_path / "dino"
    path.mkdir()
    save_file(huggingface_state("dinov2", 4, SIZES), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(huggingface_config("dinov2", SIZES)))
    return path


def test_inspect_says_what_was_found_taken_left_and_assumed(
    bilateral: Bilateral, folder: Path
) -> None:
    text = bilateral("inspect", folder).out
    assert "Hugging Face DINOv2 (names of transformers 4)" in text
    assert "44 mapped, 1 left over" in text
    assert "mask_token: used in pre-training only" in text
    assert "layer_norm_epsilon 1e-06: config.json" in text
    found = bilateral("inspect", folder, "--json").json
    assert found["format"] == "folder"
    assert found["model"]["pooling"] == "cls_mean"
    assert (found["mapped"], len(found["left_over"]), found["labels"]) == (44, 1, 5)


def test_inspect_shows_a_checkpoint_of_this_package(bilateral: Bilateral) -> None:
    found = bilateral("inspect", DIGITS, "--json").json
    assert (found["source"], found["format"]) == ("bilateral", "safetensors")


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        ("tokens", "[batch, 17, 128]"),
        pytest.param("cls", "[batch, 128]", marks=pytest.mark.slow),
    ],
)
def test_features_are_exported_and_pass_parity(
    bilateral: Bilateral, folder: Path, tmp_path: Path, output: str, shape: str
) -> None:
    file = tmp_path / "f.onnx"
    assert f"features float32{shape}" in bilateral("export", folder, file, "--output", output).out
    report = bilateral("parity", folder, file, "--items", "4", "--batches", "1,2")
    assert report.code == 0, report.out


def test_an_image_size_may_be_a_pair(bilateral: Bilateral, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "f.onnx"
    said = bilateral("export", folder, file, "--image-size", "16x48").out
    assert "image float32[batch, 3, 16, 48]" in said
    assert "--image-size 16* is not a size" in refused(
        bilateral("export", folder, file, "--image-size", "16*")
    )


def test_what_is_refused_exits_with_2(bilateral: Bilateral, tmp_path: Path) -> None:
    state = timm_state(Timm(), SIZES)
    both = {f"{prefix}.{name}": t for prefix in ("a", "b") for name, t in state.items()}
    torch.save(both, tmp_path / "c.pth")
    for command in (("inspect",), ("export",)):
        target = (tmp_path / "o.onnx",) if command == ("export",) else ()
        said = refused(bilateral(*command, tmp_path / "c.pth", *target))
        assert "2 models, under the prefixes a., b." in said
    chosen = bilateral("inspect", tmp_path / "c.pth", "--weights", "b.", "--json").json
    assert chosen["weights"] == "b."
