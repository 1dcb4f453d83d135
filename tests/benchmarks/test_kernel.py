"""The GPU command of the fused kernel: what of it can be held to account without a GPU."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bilateral_benchmarks import kernel
from bilateral_benchmarks.kernel import BandwidthRow, Row, Target, targets
from bilateral_benchmarks.kernel_timing import Timing
from bilateral_benchmarks.kernel_ways import WAYS, Shape, decomposed, flex, materialised, problem

SMALL = Shape("small", 2, 2, 17, 16, dtype=torch.float32, prefix=1)
SHAPES = [
    SMALL,
    replace(SMALL, range_kernel="gaussian"),
    replace(SMALL, spatial_kernel="dot"),
    replace(SMALL, causal=True, prefix=0),
    replace(SMALL, spatial_kernel="none", prefix=0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_baseline_computes_the_operator(shape: Shape) -> None:
    case = problem(shape, "cpu")
    expected = decomposed(case, compiled=False)()

    for way in (materialised, flex):
        torch.testing.assert_close(way(case)(), expected, atol=1e-5, rtol=1e-4)


def test_the_fused_kernel_computes_it_too() -> None:
    case = problem(SMALL, "cpu")

    torch.testing.assert_close(
        WAYS["fused"](case)(), decomposed(case, compiled=False)(), atol=1e-5, rtol=1e-4
    )


def test_so_does_its_form_with_features() -> None:
    case = problem(replace(SMALL, dtype=torch.float16), "cpu")

    torch.testing.assert_close(
        WAYS["fused, as features"](case)(), decomposed(case, compiled=False)(), atol=3e-3, rtol=0.0
    )


def test_operations_are_counted_as_usual() -> None:
    assert Shape("", 2, 3, 10, 16).flops == 4 * 2 * 3 * 10 * 10 * 16
    assert Shape("", 1, 1, 10, 16, causal=True).flops == 2 * 10 * 10 * 16


def rows(**milliseconds: float) -> list[Row]:
    shape = Shape("long", 4, 8, 4096, 64)
    return [
        Row(shape, name.replace("_", " "), Timing(ms, ms, 100)) for name, ms in milliseconds.items()
    ]


def judged(found: list[Target], words: str) -> Target:
    (target,) = [target for target in found if words in target.name]
    return target


def test_a_target_is_judged_against_the_best_backend() -> None:
    found = targets(rows(fused=1.0, sdpa_flash=2.0, sdpa_cudnn=0.8, flex=1.5), [], {})

    ceiling = judged(found, "N=4096 D=64 dot/gaussian: time over best plain SDPA")
    assert ceiling.ratio == pytest.approx(1.25)
    assert not ceiling.passed
    assert str(ceiling).startswith("MISS")
    assert judged(found, "N=4096 D=64 dot/gaussian: FlexAttention").passed


def test_what_was_not_measured_is_no_pass() -> None:
    found = targets([], [], {})

    assert found
    assert not any(target.passed for target in found)
    assert "not measured" in str(found[0])


def test_the_curve_is_judged_at_two_percent_and_at_infinity() -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    curve = [
        BandwidthRow(replace(shape, bandwidth=0.02), 0.2, 1.0, 0.8, 1e-4),
        BandwidthRow(replace(shape, bandwidth=math.inf), 1.05, 1.0, 0.0, 0.0),
    ]
    found = targets(rows(fused=1.0, sdpa_flash=0.9), curve, {})

    assert judged(found, "sigma 2%").ratio == pytest.approx(4.5)
    assert judged(found, "sigma 2%").passed
    assert not judged(found, "sigma inf").passed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_it_needs_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert kernel.main([]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this measurement needs an NVIDIA GPU")
    assert "python -m bilateral_benchmarks.kernel" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_one_shape_is_measured_on_a_gpu() -> None:
    measured = kernel.compare(Shape("small", 1, 2, 256, 64))

    fused = next(row for row in measured if row.way == "fused")
    assert fused.timing is not None
    assert 0 < fused.timing.warm_ms < 1000
    assert fused.error is not None
    assert fused.error < 1e-2
