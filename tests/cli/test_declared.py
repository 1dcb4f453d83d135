"""`bilateral repository apply`: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

from tests.builders import tiny_models as models


def test_apply_says_what_it_did_and_the_second_time_that_nothing_was_to_do(
    bilateral, tmp_path: Path
) -> None:
    models.quadrants(tmp_path / "m.onnx")
    path = tmp_path / "models.yaml"
    path.write_text("models: {m: {file: m.onnx, settings: {threads: 1}}}")
    root = tmp_path / "r"
    first = bilateral("repository", "apply", path, "--repository", root)
    assert (first.code, first.out.strip()) == (0, "m: version 1, added")
    again = bilateral("repository", "apply", path, "--repository", root, "--json")
    assert again.json == [{"name": "m", "version": 1, "change": "unchanged"}]


def test_a_file_that_is_wrong_ends_with_two_and_one_line(bilateral, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models: {m: {file: none.onnx}}")
    for command in (("apply", path, "--repository", tmp_path / "r"), ("verify", path)):
        refused = bilateral("repository", *command)
        assert refused.code == 2
        assert "none.onnx is no file" in refused.err
    assert not (tmp_path / "r").exists()
    assert bilateral("repository", "apply").code == 2


def test_the_schema_is_published(bilateral) -> None:
    schema = bilateral("repository", "apply", "--schema").json
    assert {"models", "schema_version"} == set(schema["properties"])
