"""The matrix of builds: one row for each, taken up where an earlier run stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bilateral_benchmarks.studies import build_matrix

pytest.importorskip("tensorrt_rtx")


def run(out: Path, *targets: build_matrix.Targets) -> build_matrix.BuildMatrix:
    return build_matrix.run_matrix(["digits_bilateral"], ["fp16"], ["function"], targets, out)


def test_a_second_run_builds_what_the_first_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, (86,)).passed
    asked = []
    real = build_matrix.build_plan

    def build_plan(onnx, plan, options, library):
        asked.append(options.targets)
        return real(onnx, plan, options, library=library)

    monkeypatch.setattr(build_matrix, "build_plan", build_plan)
    assert run(tmp_path, (86,), (80, 120)).passed
    assert asked == [(80, 120)]
    document = json.loads((tmp_path / f"{build_matrix.NAME}.json").read_text())
    assert [row["target"] for row in document["rows"]] == ["sm_86", "sm_80+120"]
    assert all(row["fused"] == row["attention"] == 4 for row in document["rows"])
    page = (tmp_path / f"{build_matrix.NAME}.md").read_text()
    assert "| digits_bilateral | fp16 | function | sm_86, sm_80+120 | 4 of 4 fused |" in page


def test_a_build_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    assert not run(tmp_path, (90,)).passed
    page = (tmp_path / f"{build_matrix.NAME}.md").read_text()
    assert "- fp16, function, for sm_90 (digits_bilateral): tensorrt_rtx" in page
