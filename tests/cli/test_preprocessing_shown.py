"""`inspect` says how a file becomes the input, and who said so; export refuses equal labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.cli.conftest import DIGITS, Bilateral

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.family import build


def test_a_configuration_brings_none_and_how_to_give_it_is_said(
    bilateral: Bilateral, tmp_path: Path
) -> None:
    config = ImageClassifierConfig(
        image_size=8, patch_size=4, channels=1, dim=8, depth=1, heads=2, num_classes=3
    )
    card = CheckpointCard(name="mine", model=config)
    made = Checkpoint(Path("m.pth"), "0" * 64, card, build(config).state_dict())
    export_onnx(made, tmp_path / "m.onnx")
    shown = bilateral("inspect", tmp_path / "m.onnx").out
    assert "none: `bilateral infer` cannot prepare files" in shown
    assert "--model CARD.json" in shown


def test_its_source_travels_in_the_file(bilateral: Bilateral, tmp_path: Path) -> None:
    digits = dataclasses.replace(load_checkpoint(DIGITS), preprocessing_source="the name digits")
    export_onnx(digits, tmp_path / "m.onnx")
    shown = bilateral("inspect", tmp_path / "m.onnx").out
    assert "resize 8, interpolation bicubic, mean 0.3, std 0.35; from the name digits" in shown
    summary = bilateral("inspect", tmp_path / "m.onnx", "--json").json
    assert summary["preprocessing"].endswith("from the name digits")
    assert (summary["precisions"], summary["changes"]) == (["fp32"], [])


def test_equal_labels_are_refused_at_export(tmp_path: Path) -> None:
    digits = load_checkpoint(DIGITS)
    labels = ("0", "1", "2", "3", "4", "5", "6", "7", "1", "9")
    card: CheckpointCard = digits.card.model_copy(update={"labels": labels})
    with pytest.raises(UserError, match="classes 1 and 8 have the same label '1'"):
        export_onnx(dataclasses.replace(digits, card=card), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
