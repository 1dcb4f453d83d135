"""What `bilateral repository add` and `bilateral doctor` say of files."""

from __future__ import annotations

from pathlib import Path

import onnx
from tests.cli.conftest import Bilateral


def test_what_a_tool_dropped_is_noted_in_one_line(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    del model.metadata_props[:]
    path = tmp_path / "bare.onnx"
    onnx.save(model, path)
    root = ("--repository", tmp_path / "r")
    added = bilateral("repository", "add", "bare", path, *root)
    assert added.code == 0
    (line,) = [line for line in added.err.splitlines() if line.startswith("Note on ")]
    assert "it has no metadata" in line
    added = bilateral("repository", "add", "bare", path, *root, "--json")
    assert [remark[:18] for remark in added.json["remarks"]] == ["it has no metadata"]
    assert set(added.json["versions"][1]["provenance"]["files"]) == {"model.onnx"}


def test_a_file_that_does_not_run_is_refused_and_found(
    bilateral: Bilateral, digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    model.graph.node[-1].op_type = "Unheard"
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    root = tmp_path / "r"
    added = bilateral("repository", "add", "d", path, "--no-lower", "--repository", root)
    assert added.code == 2
    (line,) = added.err.strip().splitlines()
    assert "broken.onnx cannot be served by python" in line
    assert "Unheard" in line

    assert bilateral("repository", "add", "d", digits_onnx, "--repository", root).code == 0
    (root / "d" / "1" / "model.onnx").write_bytes(path.read_bytes())
    found = bilateral("doctor", root, "--json")
    assert found.code == 1
    problems = [f["problem"] for f in found.json["findings"] if f["severity"] == "error"]
    assert any("is not the file that was added" in problem for problem in problems)
