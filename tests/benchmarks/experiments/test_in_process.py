"""Runners measured in this process: a real model, and one whose latency is known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from bilateral_benchmarks.experiments.in_process import bench_runner
from bilateral_benchmarks.load.inputs import choose, made_up
from bilateral_benchmarks.load.report import Report
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array, TensorSpec

# What it measures is wrong while something else keeps the cores busy.
pytestmark = pytest.mark.timing

CHECKPOINT = Path("export/checkpoints/digits_bilateral.safetensors")


class Sleeper:
    """A runner that takes a known time."""

    name = "sleeper"
    inputs = (TensorSpec("x", "float32", ("batch", 2)),)
    outputs = inputs

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        time.sleep(self.seconds)
        return dict(arrays)

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_latency_and_throughput_of_a_known_runner() -> None:
    x = np.zeros((4, 2), dtype=np.float32)
    report = bench_runner(Sleeper(0.01), {"x": x}, duration_s=1.5, warmup_s=0.4, concurrency=2)
    assert report.p50_ms == pytest.approx(10, rel=0.1)
    assert report.throughput == pytest.approx(200, rel=0.25)
    assert report.items_per_s == pytest.approx(4 * report.throughput)
    assert report.batch == 4
    assert report.p99_ms is None  # 300 requests cannot show it
    assert report.valid


def test_a_runner_whose_speed_changes_is_unstable() -> None:
    slowing = Sleeper(0.002)
    original = slowing.run

    def run(arrays: dict[str, Array]) -> dict[str, Array]:
        slowing.seconds *= 1.01
        return original(arrays)

    slowing.run = run  # type: ignore[method-assign]
    report = bench_runner(slowing, made_up(Sleeper.inputs), duration_s=0.9, warmup_s=0.1)
    assert not report.stable
    assert any("differ" in problem for problem in report.problems)


def test_the_report_says_where_and_how_and_survives_json() -> None:
    with TorchRunner(load_checkpoint(CHECKPOINT)) as runner:
        report = bench_runner(runner, made_up(runner.inputs, 2), duration_s=0.6, warmup_s=0.2)
    again = Report.model_validate_json(report.model_dump_json())
    assert again == report
    assert again.context.machine.cores >= 1
    assert "torch" in again.context.machine.versions
    assert again.shapes == {"image": (2, 1, 8, 8)}


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        made_up(Sleeper.inputs, 0)
    with pytest.raises(UserError, match="fixed batch"):
        made_up([TensorSpec("x", "float32", (1, 2))], 2)
    file = tmp_path / "x.npz"
    np.savez(file, x=np.zeros((3, 2), dtype=np.float32))
    assert choose(Sleeper.inputs, file, 3)["x"].shape == (3, 2)
    with pytest.raises(UserError, match="fewer than 4"):
        choose(Sleeper.inputs, file, 4)
