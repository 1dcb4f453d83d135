"""`bilateral bench` without a server: what it refuses, and how two reports are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Bilateral
from tests.cli.test_bad_input import refused

TIMED = ("--duration", 1.5, "--warmup", 0.1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--max-duration", "nan"), "longest duration of nan"),
        (("--max-duration", "inf"), "longest duration of inf"),
        (("--max-duration", 0.1), "longest duration of 0.1"),
        (("--threads", 0), "0 threads"),
        (("--concurrency", 0), "concurrency is 0"),
        (("--batch", 10**12), "does not fit into memory"),
        (("--batch", 10**30), "does not fit into memory"),
        (("--output", "."), "is a directory"),
        (("--output", "/dev/null/report.json"), "nothing can be written"),
    ],
)
def test_a_runner_s_options_are_refused(
    bilateral: Bilateral, digits_onnx: Path, options: tuple[object, ...], complaint: str
) -> None:
    assert complaint in refused(bilateral("bench", "runner", digits_onnx, *TIMED, *options))


@pytest.mark.parametrize("command", ["runtimes", "ablation"])
def test_a_comparison_has_rounds_and_items(bilateral: Bilateral, command: str) -> None:
    for option in ("--rounds", "--batch"):
        outcome = bilateral("bench", command, "digits_bilateral", option, 0)
        assert outcome.code == 2
        assert option in outcome.err


@pytest.mark.parametrize("lengths", ["1.5", "nan", "-4", "1", ",", "1e400", "x"])
def test_lengths_that_cannot_be_are_refused(bilateral: Bilateral, lengths: str) -> None:
    for command in ("growth", "tiles"):
        refused(bilateral("bench", command, "--lengths", lengths))


def test_seconds_that_cannot_be_are_refused(bilateral: Bilateral) -> None:
    assert "above 0" in refused(bilateral("bench", "growth", "--seconds", "nan"))


def test_two_reports_are_compared_and_other_machines_are_named(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    bilateral("bench", "runner", digits_onnx, *TIMED, "-o", here)
    report = json.loads(here.read_text())
    (item,) = report["items"]
    item |= {"valid": True, "stable": True, "problems": []}  # as on a machine that is not busy
    assert item["subject"].startswith("digits.onnx, onnxruntime")
    for percentile in item["response"]["percentiles"]:
        percentile |= {"low_ms": 0.9, "value_ms": 1.0, "high_ms": 1.1}
    here.write_text(json.dumps(report))
    item["context"]["machine"]["cpu"] = "[another] CPU"
    there.write_text(json.dumps(report))

    same = bilateral("bench", "compare", here, here)
    assert same.code == 0
    assert "indistinguishable" in same.out
    assert "different machines" not in same.err
    other = bilateral("bench", "compare", here, there)
    assert other.code == 0
    assert "| [another] CPU (1 of 1 measurements)" in other.err

    for percentile in item["response"]["percentiles"]:
        percentile |= {"low_ms": 1.8, "value_ms": 2.0, "high_ms": 2.2}
    there.write_text(json.dumps(report))
    slower = bilateral("bench", "compare", here, there, "--json")
    assert slower.code == 1
    assert slower.json[0]["judgement"] == "slower"
    assert slower.json[0]["doubts"][0].startswith("different machines: processor")
