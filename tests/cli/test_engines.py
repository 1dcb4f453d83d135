"""`bilateral build`, `inspect` and `doctor`: what they print, their exit codes, how they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders.exported import exported
from tests.builders.plans import plugin_record, write_plan

from bilateral_serving import repository


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model in half precision."""
    return exported("digits_bilateral", tmp_path_factory, precision="fp16")


@pytest.fixture(scope="module")
def _rtx() -> None:
    pytest.importorskip("tensorrt_rtx")


@pytest.mark.usefixtures("_rtx")
class TestBuild:
    def test_says_what_was_built(self, bilateral, onnx: Path, tmp_path: Path) -> None:
        outcome = bilateral(
            "build", onnx, tmp_path / "d.plan", "--sm", 86, "--attention", "function"
        )
        assert outcome.code == 0, outcome.err
        assert "fp16, tensorrt_rtx" in outcome.out
        assert "sm_86" in outcome.out
        assert "4 as function bodies, 4 fused" in outcome.out
        assert "1x1x8x8:8x1x8x8:32x1x8x8" in outcome.out

    def test_prints_its_manifest_as_json(self, bilateral, onnx: Path, tmp_path: Path) -> None:
        outcome = bilateral(
            *("build", onnx, tmp_path / "d.plan", "--sm", 120, "--attention", "function"),
            *("--profile", "image=1x1x8x8:2x1x8x8:4x1x8x8", "--tf32", "--json"),
        )
        assert outcome.json["max_batch"] == 4
        assert outcome.json["tf32"] is True
        assert outcome.json["metadata"]["labels"] == [str(digit) for digit in range(10)]
        assert (tmp_path / "d.plan.json").is_file()

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--sm", "90"], "sm_90"),
            (["--attention", "fast"], "auto, plugin, function"),
            (["--profile", "image=1x1"], "minimum:optimum:maximum"),
            (["--hardware-compatibility", "all"], "ampere_plus"),
            (["--plugin", "nowhere.so"], "nowhere.so"),
            (["--timing-cache", "cache"], "--timing-cache"),
        ],
    )
    def test_refuses_in_one_line_and_writes_nothing(
        self, bilateral, onnx: Path, tmp_path: Path, arguments: list[str], reason: str
    ) -> None:
        outcome = bilateral("build", onnx, tmp_path / "d.plan", *arguments)
        assert outcome.code == 2
        assert reason in outcome.err
        assert outcome.err.strip().count("\n") == 0
        assert list(tmp_path.iterdir()) == []

    def test_a_plan_is_inspected_and_added(self, bilateral, onnx: Path, tmp_path: Path) -> None:
        plan = tmp_path / "digits.plan"
        bilateral("build", onnx, plan, "--sm", 86, "--attention", "function", "--max-batch", 16)
        shown = bilateral("inspect", plan).out
        assert "belongs to the plan" in shown
        assert "4 nodes, function, 4 fused" in shown
        root = tmp_path / "repository"
        added = bilateral(
            "repository", "add", "digits", plan, "--target", "tensorrt", "--repository", root
        )
        assert added.code == 0, added.err
        entry = bilateral("inspect", root / "digits")
        assert "version 1: model.plan" in entry.out
        refused = bilateral(
            *("repository", "add", "more", plan, "--target", "tensorrt", "--repository", root),
            *("--max-batch-size", 17),
        )
        assert refused.code == 2
        assert "up to a batch of 16" in refused.err


class TestLaunchLine:
    def add(self, bilateral, tmp_path: Path, library: Path, embedded: bool):
        plan = write_plan(tmp_path / "p.plan", plugin=plugin_record(library, embedded))
        root = tmp_path / "repository"
        return bilateral(
            "repository", "add", "p", plan, "--target", "tensorrt", "--repository", root
        )

    @pytest.fixture
    def library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "libplugin.so"
        path.write_bytes(b"library")
        monkeypatch.setenv("BILATERAL_PLUGIN", str(path))
        return path

    def test_of_a_plan_that_needs_the_plugin(self, bilateral, tmp_path: Path, library: Path):
        outcome = self.add(bilateral, tmp_path, library, embedded=False)
        assert outcome.code == 0
        assert f"--backend-config=tensorrt,plugins={library}" in outcome.err

    def test_of_a_plan_that_carries_it(self, bilateral, tmp_path: Path, library: Path):
        outcome = self.add(bilateral, tmp_path, library, embedded=True)
        assert "--backend-config=tensorrt,version-compatible=true" in outcome.err

    def test_a_missing_plugin_does_not_undo_the_add(
        self, bilateral, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("bilateral_export.engine.installation.plugin.find_plugin", lambda: None)
        outcome = self.add(bilateral, tmp_path, library, embedded=False)
        assert outcome.code == 0
        assert "Before it is served: the plugin library is not built" in outcome.err
        assert (tmp_path / "repository" / "p" / "1" / "model.plan").is_file()


class TestInspect:
    def test_shows_an_onnx_file(self, bilateral, onnx: Path) -> None:
        outcome = bilateral("inspect", onnx)
        assert "4 ai.bilateral::BilateralAttention" in outcome.out
        assert "spatial_kernel=gaussian" in outcome.out
        assert bilateral("inspect", onnx, "--json").json["attention"]

    def test_refuses_other_files(self, bilateral, tmp_path: Path) -> None:
        other = tmp_path / "notes.txt"
        other.write_text("notes")
        outcome = bilateral("inspect", other)
        assert outcome.code == 2
        assert "neither an ONNX file nor a plan" in outcome.err

    def test_an_entry_whose_plan_is_a_directory(self, bilateral, tmp_path: Path) -> None:
        (tmp_path / "p" / "1" / "model.plan").mkdir(parents=True)
        (tmp_path / "p" / "config.pbtxt").write_text('backend: "tensorrt"')
        outcome = bilateral("inspect", tmp_path / "p")
        assert outcome.code == 2
        assert "model.plan is a directory" in outcome.err


class TestDoctor:
    def test_exit_code_and_json(self, bilateral, onnx: Path, tmp_path: Path) -> None:
        root = tmp_path / "repository"
        repository.add("digits", onnx, root)
        healthy = bilateral("doctor", root, "--container", "26.07", "--json")
        assert healthy.code == 0
        assert healthy.json["findings"] == []
        (root / "digits" / "labels.txt").unlink()
        sick = bilateral("doctor", root, "--container", "26.07", "--json")
        assert sick.code == 1
        assert sick.json["findings"][0]["severity"] == "error"
        shown = bilateral("doctor", root, "--container", "26.07")
        assert shown.code == 1
        assert "labels.txt" in shown.out
        assert "1 errors, 0 warnings" in shown.out

    def test_unknown_containers_and_missing_repositories_are_refused(
        self, bilateral, tmp_path: Path
    ) -> None:
        unknown = bilateral("doctor", tmp_path, "--container", "99.99")
        assert unknown.code == 2
        assert "26.08" in unknown.err
        assert bilateral("doctor", tmp_path / "missing").code == 2
        no_version = bilateral("doctor", tmp_path, "--tensorrt", "newest")
        assert no_version.code == 2
        assert "not a version of TensorRT" in no_version.err
