"""Every command does its one thing, and says so to people and to machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import CHECKPOINTS, DIGITS, Bilateral

COMMANDS = [
    *(
        "export",
        "parity",
        "repository",
        "repository add",
        "serve",
        "infer",
        "models",
        "score-files",
    ),
    *("study theory", "study build-matrix", "check plugin", "check schema", "kernels compile"),
]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_reads_as_documentation(bilateral: Bilateral, command: str) -> None:
    outcome = bilateral(*command.split(), "--help")
    assert outcome.code == 0
    assert "Usage:" in outcome.out
    if command not in ("", "repository", "models"):
        assert "Example: bilateral" in outcome.out


def test_export_says_what_it_wrote(bilateral: Bilateral, tmp_path: Path) -> None:
    target = tmp_path / "digits.onnx"
    outcome = bilateral("export", DIGITS, target, "--precision", "fp16")
    assert outcome.code == 0
    assert "digits_bilateral, fp16, opset 21, 4 attention nodes" in outcome.out
    assert "image float32[batch, 1, 8, 8]" in outcome.out
    assert target.exists()


def test_export_prints_json_for_machines(bilateral: Bilateral, tmp_path: Path) -> None:
    document = bilateral("export", DIGITS, tmp_path / "digits.onnx", "--json").json
    assert document["attention_nodes"] == 4
    assert document["bytes"] == (tmp_path / "digits.onnx").stat().st_size


def test_parity_passes_a_healthy_file_and_fails_another_models(
    bilateral: Bilateral, digits_onnx: Path
) -> None:
    few = ("--items", 4, "--batches", "1,2")
    healthy = bilateral("parity", DIGITS, digits_onnx, "--json", *few)
    assert healthy.code == 0
    assert all(row["passed"] for row in healthy.json["rows"])
    other = bilateral("parity", CHECKPOINTS / "digits_plain.safetensors", digits_onnx, *few)
    assert other.code == 1
    assert "FAIL" in other.out


def test_a_repository_is_filled_listed_shown_and_emptied(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    here = ("--repository", tmp_path / "models")
    added = bilateral("repository", "add", "digits", digits_onnx, *here, "--max-batch-size", 4)
    assert "version 1 of digits, target python, batches up to 4" in added.out
    (entry,) = bilateral("repository", "list", *here, "--json").json
    assert (entry["name"], entry["max_batch_size"]) == ("digits", 4)
    shown = bilateral("repository", "show", "digits", *here)
    assert "image float32" in shown.out
    assert "CC-BY-4.0" in shown.out
    assert bilateral("repository", "remove", "digits", *here).code == 0
    assert bilateral("repository", "list", *here, "--json").json == []


def test_known_models_are_listed_with_their_sizes(bilateral: Bilateral) -> None:
    document = bilateral("models", "--json").json
    assert document["deit_small_patch16_224"]["parameters"] == 22_050_664
    assert "digits_bilateral" in bilateral("models").out
