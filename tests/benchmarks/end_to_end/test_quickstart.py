"""The main job from end to end, with the real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.builders.exported import exported

from bilateral_benchmarks.end_to_end.quickstart import STEPS, quickstart
from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import Settings

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


def children() -> set[str]:
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def test_a_trained_checkpoint_becomes_a_verified_service(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    models = tmp_path / "models"
    earlier = exported("digits_bilateral", tmp_path_factory)
    repository.add("digits", earlier, models, settings=Settings(max_batch_size=4))
    steps: list[str] = []
    results: dict[str, str] = {}
    before = children()
    summary = quickstart(
        CHECKPOINTS,
        models,
        tmp_path / "out",
        on_step=steps.append,
        on_result=results.__setitem__,
        duration_s=1.5,
    )
    assert summary.passed
    assert summary.images == 360
    assert summary.served_accuracy == summary.torch_accuracy >= 0.97
    assert summary.p50_ms is not None
    assert 0 < summary.p50_ms < 1000
    assert summary.throughput > 0
    assert len(steps) == STEPS
    assert len(results) == STEPS - 1, "stopping has nothing to say"
    written = json.loads((tmp_path / "out" / "quickstart.json").read_text())
    assert written["served_accuracy"] == summary.served_accuracy
    assert children() <= before, "the server is still there"
    assert repository.show("digits", models).max_batch_size == 4, "its settings are kept"


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"digits_bilateral\.safetensors does not exist"):
        quickstart(tmp_path, tmp_path / "models", tmp_path / "out", print, print)
