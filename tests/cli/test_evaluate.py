"""`bilateral evaluate` as a user runs it."""

from __future__ import annotations

from pathlib import Path

from tests.builders import labelled
from tests.cli.conftest import DIGITS, Bilateral


def test_the_gate_and_what_is_printed(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    data = labelled.heldout_digits(tmp_path / "data", 60)
    names = ["0", "1", "7", "3", "4", "5", "6", "2", "8", "9"]
    wrong = labelled.mistaken(digits_onnx, tmp_path / "wrong.onnx", labels=names)
    right = bilateral("evaluate", DIGITS, digits_onnx, "--data", data, "--max-drop", 0, "--json")
    assert right.code == 0
    assert right.json["items"] == 60
    assert right.json["pairs"][0]["changed"] == []
    record = tmp_path / "answers.jsonl"
    asked = ("evaluate", digits_onnx, wrong, "--data", data, "--record", record)
    gated = bilateral(*asked, "--max-drop", 0.01)
    assert gated.code == 1
    for text in ("60 items", "top1", "in another order", "McNemar", "more than --max-drop 0.01"):
        assert text in gated.out
    assert bilateral(*asked).code == 0
    assert len(record.read_text().splitlines()) == 120


def test_wrong_calls_are_one_line(bilateral: Bilateral, digits_onnx: Path, tmp_path: Path) -> None:
    for arguments in (
        (digits_onnx, "--data", tmp_path / "none"),
        (digits_onnx, "--data", tmp_path, "--max-drop", 0.1),
        (tmp_path / "none.onnx", "--data", tmp_path),
    ):
        outcome = bilateral("evaluate", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.strip().count("\n") == 0
