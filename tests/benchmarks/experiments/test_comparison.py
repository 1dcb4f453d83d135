"""Comparisons by turns, operations counted, growth fitted, on small real models."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tests.builders.exported import exported as shared

from bilateral_benchmarks.experiments import gemm_peak
from bilateral_benchmarks.experiments.attention_model import write_attention
from bilateral_benchmarks.experiments.comparison import run_comparison
from bilateral_benchmarks.experiments.contenders import Absent, attention_forms, checkpoint_of
from bilateral_benchmarks.experiments.flops import model_flops
from bilateral_benchmarks.experiments.isolated import measure_isolated
from bilateral_benchmarks.experiments.operator_profile import profile_operators
from bilateral_benchmarks.experiments.scaling import exponent
from bilateral_benchmarks.statistics.interleave import interleave
from bilateral_export.errors import UserError
from bilateral_export.lowering.lower import lower

# What it measures is wrong while something else keeps the cores busy.
pytestmark = pytest.mark.timing

CHECKPOINT = "export/checkpoints/digits_bilateral.safetensors"


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_peak, "SIZES", (64, 128))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared("digits_bilateral", tmp_path_factory, opset=23)


def test_a_ratio_of_known_times_is_found() -> None:
    blocks = interleave(
        {"slow": lambda: time.sleep(0.012), "fast": lambda: time.sleep(0.004)},
        rounds=7,
        block_s=0.03,
    )
    ratio = blocks.ratio("fast", "slow")
    assert ratio.value == pytest.approx(3.0, rel=0.15)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value <= ratio.high
    assert blocks.ratio("slow", "slow").value == 1.0


def test_operations_of_a_known_layer(tmp_path: Path) -> None:
    tokens, dim = 50, 32
    path = write_attention(tmp_path / "a.onnx", tokens, heads=2, head_dim=16)
    # Projections of 3 and 1 times dim x dim, and two products of N x N per head.
    assert model_flops(path) == 2 * tokens * dim * 4 * dim + 4 * tokens**2 * dim
    assert model_flops(path, batch=3) == 3 * model_flops(path)


def test_every_form_of_attention_is_judged_and_timed(exported: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(CHECKPOINT, tmp_path)
    contenders = list(attention_forms(checkpoint, exported, tmp_path))
    found = run_comparison("digits", checkpoint, exported, contenders, rounds=2)
    by_name = {row.name: row for row in found.rows}
    for name in ("custom op through its body", "augmented, flash", "materialised bias folded"):
        assert by_name[name].parity_passed
        assert (by_name[name].fastest_ms or 0) > 0
    # Another model must not pass for ours.
    assert by_name["no spatial term (another model)"].parity_passed is False
    assert found.baseline == "torch eager"
    # The limit is the fastest of all libraries.
    assert {"torch", "numpy", "onnxruntime"} <= {rate.library for rate in found.gemm_rates}
    assert found.gemm_gflops == max(rate.gflops for rate in found.gemm_rates)
    assert by_name["torch eager"].ratio == 1.0


def test_stages_have_the_work_that_is_left_of_the_model(exported: Path, tmp_path: Path) -> None:
    lowered = lower(exported, "onnxruntime-cpu", tmp_path / "l.onnx", form="augmented").path
    found = profile_operators("digits", lowered, rounds=1)
    stages = {stage.name: stage for stage in found.stages}
    work = sum(stage.gflop for stage in found.stages) * 1e9
    # Tokens that are not read are left out, the extra columns of the flash form come on top.
    assert 0.8 * model_flops(exported) < work < 1.3 * model_flops(exported)
    assert stages["attention"].gflop > 0
    assert stages["norms"].gflop == 0
    assert all(stage.ms > 0 for stage in found.stages)


def test_what_is_not_here_is_listed_with_its_reason(exported: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(CHECKPOINT, tmp_path)
    contenders = [*list(attention_forms(checkpoint, exported, tmp_path))[:1], Absent("x", "why")]
    found = run_comparison("digits", checkpoint, exported, contenders, rounds=1)
    assert found.rows[-1].absent == "why"


def test_flash_memory_grows_with_the_length_and_the_body_with_its_square(tmp_path: Path) -> None:
    sizes = (512, 2048)
    memory: dict[str, list[float]] = {"augmented": [], "decomposed": []}
    for size in sizes:
        path = write_attention(tmp_path / f"{size}.onnx", size, heads=4, head_dim=32)
        for form, values in memory.items():
            lowered = lower(path, "onnxruntime-cpu", tmp_path / f"{form}{size}.onnx", form=form)
            measured = measure_isolated(lowered.path, "onnxruntime", seconds=0.1)
            assert measured.failure is None
            values.append(measured.run_mib or 0.0)
    linear, square = (exponent(sizes, memory[form])[0] for form in ("augmented", "decomposed"))
    assert linear is not None
    assert square is not None
    assert linear < 1.3
    assert square > 1.6


def test_a_process_that_runs_out_of_memory_is_reported(tmp_path: Path) -> None:
    path = write_attention(tmp_path / "a.onnx", 8192)
    lowered = lower(path, "onnxruntime-cpu", tmp_path / "d.onnx", form="decomposed").path
    measured = measure_isolated(lowered, "onnxruntime", seconds=0.1, memory_mib=2500)
    assert measured.failure is not None
    assert measured.median_ms is None


def test_exponents_of_known_powers() -> None:
    sizes = [10.0, 100.0, 1000.0]
    value, interval = exponent(sizes, [7 * size**2 for size in sizes])
    assert value == pytest.approx(2.0)
    assert interval == pytest.approx((2.0, 2.0))
    assert exponent([1.0], [1.0]) == (None, None)
    assert exponent(sizes[:2], [1.0, 10.0])[1] is None


def test_an_exponents_interval_covers_the_true_power_in_nineteen_of_twenty_samples() -> None:
    generator = np.random.default_rng(0)
    sizes = np.geomspace(1000, 64000, 7)
    covered = 0
    for noise in generator.normal(0, 0.1, (400, 7)):
        _, interval = exponent(sizes.tolist(), (sizes**1.5 * np.exp(noise)).tolist())
        assert interval is not None
        covered += interval[0] <= 1.5 <= interval[1]
    assert 365 <= covered <= 394


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown model"):
        checkpoint_of("deit_enormous", tmp_path)
