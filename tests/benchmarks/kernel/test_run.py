"""The GPU command of the fused kernel: what of it can be held to account without a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.export.op.kernel.problems import DEVICE

from bilateral_benchmarks.kernel import run
from bilateral_benchmarks.kernel.baselines import (
    WAYS,
    Problem,
    Run,
    Shape,
    compiled,
    decomposed,
    flex,
    materialised,
    problem,
)
from bilateral_benchmarks.kernel.results import (
    CURVE,
    UNFINISHED,
    BandwidthRow,
    Results,
    Row,
    begin,
    kernel_hash,
    mark,
)
from bilateral_benchmarks.kernel.targets import Target, targets
from bilateral_benchmarks.kernel.timing import Timing
from bilateral_export.errors import UserError

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
    expected = decomposed(case)()

    for way in (materialised, flex, compiled):
        torch.testing.assert_close(way(case)(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", [flex, compiled])
def test_the_ninth_shape_is_compiled_like_the_first(way: Callable[[Problem], Run]) -> None:
    """PyTorch keeps eight variants of a function, and would run the next in eager mode."""
    for tokens in range(2, 12):
        case = problem(replace(SMALL, tokens=tokens), "cpu")
        torch.testing.assert_close(way(case)(), decomposed(case)(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["fused", "fused, exact form"])
def test_the_fused_kernel_computes_it_too(way: str) -> None:
    case = problem(replace(SMALL, dtype=torch.float16), DEVICE)

    torch.testing.assert_close(WAYS[way](case)(), decomposed(case)(), atol=3e-3, rtol=0.0)


def test_a_form_that_the_rule_does_not_leave_open_is_not_timed_twice() -> None:
    with pytest.raises(RuntimeError, match="the same as fused"):
        WAYS["fused, exact form"](problem(SMALL, "cpu"))


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
    assert all("not measured" in str(target) for target in found)
    assert len([target for target in found if "sigma" in target.name]) == 6


def test_the_curve_is_judged_at_two_percent_and_at_infinity() -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    curve = [
        BandwidthRow(replace(shape, bandwidth=0.02), 0.2, 1.0, 0.8, 1e-4),
        BandwidthRow(replace(shape, bandwidth=math.inf), 1.05, 1.0, 0.0, 0.0),
    ]
    found = targets(rows(fused=1.0, sdpa_flash=0.9), curve, {})

    narrow = judged(found, "N=4096 dot/gaussian sigma 2%")
    assert narrow.ratio == pytest.approx(4.5)
    assert narrow.passed
    infinite = judged(found, "N=4096 dot/gaussian sigma inf")
    assert infinite.ratio == pytest.approx(1.05)
    assert not infinite.passed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_it_needs_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.main([]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this measurement needs an NVIDIA GPU")
    assert "python -m bilateral_benchmarks.kernel.run" in line


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    results = begin(tmp_path, "H100")
    results.rows += [Row(shape, "fused", Timing(1.0, 2.0, 3, 4.0), error=1e-3)]
    results.rows += [Row(shape, "flex", None, "ValueError: no")]
    infinite = replace(shape, bandwidth=math.inf)
    results.curves += [BandwidthRow(infinite, 1.0, 1.0, 0.5, 0.0)]
    results.save(tmp_path)

    assert begin(tmp_path, "H100") == results
    assert results.has(shape, "flex")
    assert not results.has(infinite, "flex")
    assert results.has(infinite, CURVE)
    assert not results.has(shape, CURVE)


def test_times_of_another_kernel_are_measured_again(tmp_path: Path) -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    results = Results("H100", kernel="another")
    for way in ("fused", "flex"):
        results.add(Row(shape, way, Timing(1.0, 2.0, 3, 4.0)))
    results.add(BandwidthRow(shape, 1.0, 1.0, 0.5, 0.0))
    results.add(Row(replace(shape, bandwidth=0.1), CURVE, None, "ValueError: no"))
    results.save(tmp_path)

    again = begin(tmp_path, "H100")
    assert [row.way for row in again.rows] == ["flex"]
    assert again.curves == []
    assert again.kernel == kernel_hash() != "another"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": "H100"}', "\x00"])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "kernel.json").write_text(text)

    with pytest.raises(UserError, match="does not hold results of this command"):
        begin(tmp_path, "H100")


def test_what_is_wanted_most_is_measured_first() -> None:
    order = list(dict.fromkeys(way for way, _ in run._in_order()))

    assert set(order) == {*WAYS, CURVE}
    assert order[:2] == ["fused", "fused, exact form"]
    assert order.index("sdpa with bias") < order.index(CURVE) < order.index("flex")
    assert order[-2:] == ["eager", "compiled"]


def test_what_ended_a_run_is_not_tried_again(tmp_path: Path) -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    Results("H100", current=mark("flex", shape)).save(tmp_path)

    (row,) = begin(tmp_path, "H100").rows
    assert row == Row(shape, "flex", None, UNFINISHED)


def test_results_of_another_device_are_not_mixed_in(tmp_path: Path) -> None:
    Results("H100").save(tmp_path)

    with pytest.raises(UserError, match="was measured on H100, this is H200"):
        begin(tmp_path, "H200")


def test_a_way_that_raises_is_a_row_with_the_reason() -> None:
    """Here every way that needs a GPU's clock raises."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    row = run.compare(problem(SMALL, "cpu"), "eager")

    assert row.timing is None
    assert row.why


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_one_shape_is_measured_on_a_gpu() -> None:
    fused = run.compare(problem(Shape("small", 1, 2, 256, 64), "cuda"), "fused")

    assert fused.timing is not None
    assert 0 < fused.timing.warm_ms < 1000
    assert fused.error is not None
    assert fused.error < 1e-2
