"""`bilateral parity`: what it prints, writes and exits with."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from tests.builders.exported import exported
from tests.builders.graph_faults import GRAPH_FAULTS
from typer.testing import CliRunner, Result

from bilateral_cli.commands import app
from bilateral_export.errors import UserError

DIGITS = Path(__file__).parents[2] / "export" / "checkpoints" / "digits_bilateral.safetensors"


def _parity(file: Path, *options: object) -> Result:
    arguments = ["parity", str(DIGITS), str(file), *map(str, options)]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("digits_bilateral", tmp_path_factory)


def test_a_fault_is_shown_with_its_node_and_left_to_reproduce(
    healthy: Path, tmp_path: Path
) -> None:
    faulty = tmp_path / "faulty.onnx"
    model = onnx.load(healthy)
    GRAPH_FAULTS["gelu by tanh"].apply(model)
    onnx.save(model, faulty)
    few = ("--items", 4, "--batches", "1,2")
    before = _parity(healthy, "--json", *few)
    assert before.exit_code == 0
    (tmp_path / "before.json").write_text(before.stdout)

    page, alone = tmp_path / "report.html", tmp_path / "alone"
    told = ("--html", page, "--reproducers", alone, "--baseline", tmp_path / "before.json")
    outcome = _parity(faulty, *told, *few)
    assert outcome.exit_code == 1
    assert "blocks.2.mlp/Gelu" in outcome.stdout
    assert "bilateral_export/models/block.py:" in outcome.stdout
    assert "Worse than the baseline" in outcome.stderr
    assert "blocks.2.mlp/Gelu" in page.read_text()
    assert list(alone.glob("*/reproduce.py"))


def test_options_that_cannot_be_meant_are_refused(healthy: Path, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({}))
    for options, complaint in (
        (("--batches", "1,x"), "not a list of sizes"),
        (("--length", "words=5"), "no dimension words"),
        (("--length", "words=-1"), "not a list of sizes"),
        (("--factor", "nan"), "not a positive finite number"),
        (("--factor", "0"), "not a positive finite number"),
        (("--reproducers", healthy.parent), "exists already"),
        (("--baseline", tmp_path / "old.json"), "not a parity report"),
    ):
        with pytest.raises(UserError, match=complaint):
            _parity(healthy, *options)


def test_names_and_reasons_are_not_markup(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec

    def without(name: str, package: str | None = None):
        return None if name == "onnxruntime_extensions" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    outcome = _parity(healthy, "--items", 1, "--batches", 1)
    assert "pip install 'bilateral-serve[custom-op]'" in outcome.stdout


def test_a_file_of_other_outputs_is_a_verdict(healthy: Path, tmp_path: Path) -> None:
    model = onnx.load(healthy)
    next(node for node in model.graph.node if "logits" in node.output).output[0] = "[red]"
    model.graph.output[0].name = "[red]"
    onnx.save(model, tmp_path / "renamed.onnx")
    outcome = _parity(tmp_path / "renamed.onnx", "--items", 4, "--batches", "1,2")
    assert outcome.exit_code == 1
    assert "file: interface: it has no output logits; the model has no output [red]" in (
        outcome.stdout
    )
