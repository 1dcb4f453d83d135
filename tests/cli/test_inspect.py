"""`inspect` and `repository add` say what a file is, not what it says it is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import onnx
from tests.cli.conftest import DIGITS, Bilateral

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build


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


def test_a_file_that_another_tool_quantised_is_said_to_be_int8(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(digits_onnx, tmp_path / "int8.onnx")
    shown = bilateral("inspect", tmp_path / "int8.onnx").out
    assert re.search(r"precision +│ int8 ", shown)
    assert "digits_bilateral, exported as fp32" in shown
    assert "exported as fp32, its weights are int8" in shown
    added = bilateral(
        "repository", "add", "m", tmp_path / "int8.onnx", "--repository", tmp_path / "r"
    )
    assert added.code == 0
    assert "was changed since its export: exported as fp32, its weights are int8" in added.err


def test_a_file_that_another_tool_made_fp16_is_refused_in_one_line(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(digits_onnx)), tmp_path / "fp16.onnx")
    for command in (
        ("repository", "add", "m", tmp_path / "fp16.onnx", "--repository", tmp_path / "r"),
        ("lower", tmp_path / "fp16.onnx", "--for", "openvino"),
    ):
        outcome = bilateral(*command)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        assert "exported as fp32, its weights are fp16" in outcome.err
        assert "Export it again with `bilateral export`, which has --precision" in outcome.err
    assert not list((tmp_path / "r").glob("m/*"))
