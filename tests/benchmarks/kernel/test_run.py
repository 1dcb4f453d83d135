"""The GPU command of the fused kernel: what of it can be held to account without a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.export.op.kernel.problems import DEVICE

from bilateral_benchmarks.kernel import run
from bilateral_benchmarks.kernel.baselines import (
    BASELINES,
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
    Target,
    begin,
    kernel_hash,
    mark,
)
from bilateral_benchmarks.kernel.targets import targets
from bilateral_benchmarks.kernel.timing import Timing
from bilateral_benchmarks.report.files import page
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

    torch.testing.assert_close(BASELINES[way](case)(), decomposed(case)(), atol=3e-3, rtol=0.0)


def test_a_form_that_the_rule_does_not_leave_open_is_not_timed_twice() -> None:
    with pytest.raises(RuntimeError, match="the same as fused"):
        BASELINES["fused, exact form"](problem(SMALL, "cpu"))


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


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    results = begin(tmp_path, "H100")
    results.rows += [Row(shape, "fused", Timing(1.0, 2.0, 3, 4.0), error=1e-3)]
    results.rows += [Row(shape, "flex", None, "ValueError: no")]
    infinite = replace(shape, bandwidth=math.inf)
    results.bandwidth += [BandwidthRow(infinite, 1.0, 1.0, 0.5, 0.0)]
    results.save(tmp_path)

    assert begin(tmp_path, "H100") == results
    assert results.has(shape, "flex")
    assert not results.has(infinite, "flex")
    assert results.has(infinite, CURVE)
    assert not results.has(shape, CURVE)


def test_times_of_another_kernel_are_measured_again(tmp_path: Path) -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    results = Results(device="H100", kernel="another")
    for way in ("fused", "flex"):
        results.add(Row(shape, way, Timing(1.0, 2.0, 3, 4.0)))
    results.add(BandwidthRow(shape, 1.0, 1.0, 0.5, 0.0))
    results.add(Row(replace(shape, bandwidth=0.1), CURVE, None, "ValueError: no"))
    results.save(tmp_path)

    again = begin(tmp_path, "H100")
    assert [row.way for row in again.rows] == ["flex"]
    assert again.bandwidth == []
    assert again.kernel == kernel_hash() != "another"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": "H100"}', "\x00"])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "kernel.json").write_text(text)

    with pytest.raises(UserError, match="does not hold results of this command"):
        begin(tmp_path, "H100")


def test_a_file_of_the_old_version_is_resumed(tmp_path: Path) -> None:
    """What the previous version wrote, field by field."""
    shape = {
        "name": "long",
        "batch": 4,
        "heads": 8,
        "tokens": 4096,
        "head_dim": 64,
        "dtype": "bf16",
        "range_kernel": "dot",
        "spatial_kernel": "gaussian",
        "causal": False,
        "prefix": 0,
        "bandwidth": "inf",
        "features": 0,
    }
    timing = {"warm_ms": 1.0, "cold_ms": 2.0, "peak_bytes": 3, "host_ms": 4.0}
    curve = {"warm_ms": 1.0, "without_skipping_ms": 1.0, "skipped": 0.5, "error": 0.0}
    document = {
        "device": "H100",
        "kernel": kernel_hash(),
        "gemm_peak_tflops": {"bf16": 700.0},
        "current": f"flex on {json.dumps(shape)}",
        "rows": [{"shape": shape, "way": "fused", "timing": timing, "why": "", "error": 1e-3}],
        "bandwidth": [{"shape": shape, **curve}],
        "complete": True,
        "targets": [{"name": "t", "ratio": 1.0, "limit": 2.0, "at_most": True, "passed": True}],
    }
    (tmp_path / "kernel.json").write_text(json.dumps(document))
    results = begin(tmp_path, "H100")
    expected = Shape("long", 4, 8, 4096, 64, bandwidth=math.inf)
    assert results.rows == [
        Row(expected, "fused", Timing(1.0, 2.0, 3, 4.0), error=1e-3),
        Row(expected, "flex", None, UNFINISHED),
    ]
    assert results.bandwidth == [BandwidthRow(expected, 1.0, 1.0, 0.5, 0.0)]
    results.save(tmp_path)
    again = json.loads((tmp_path / "kernel.json").read_text())
    assert document.keys() <= again.keys()
    assert again["rows"][0] == document["rows"][0]  # type: ignore[index]
    assert again["bandwidth"] == document["bandwidth"]


def test_the_page_has_every_time_and_verdict(tmp_path: Path) -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    results = Results(
        device="H100",
        kernel=kernel_hash(),
        gemm_peak_tflops={"bf16": 700.0},
        rows=[Row(shape, "fused", Timing(1.0, 2.0, 3)), Row(shape, "flex", None, "ValueError: no")],
        bandwidth=[BandwidthRow(shape, 1.25, 1.5, 0.5, 0.0)],
        targets=[Target("a promise", None, 1.0, True)],
        complete=False,
    )
    text = page(results)
    assert "| fused | 1.000 | 2.000 |" in text
    assert "does not run: ValueError: no" in text
    assert "| 1.250 | 1.500 | 50% |" in text
    assert "MISS  a promise: not measured" in text
    assert "Not complete" in text
    assert not results.passed


def test_what_is_wanted_most_is_measured_first() -> None:
    order = list(dict.fromkeys(way for way, _ in run._in_order()))

    assert set(order) == {*BASELINES, CURVE}
    assert order[:2] == ["fused", "fused, exact form"]
    assert order.index("sdpa with bias") < order.index(CURVE) < order.index("flex")
    assert order[-2:] == ["eager", "compiled"]


def test_what_ended_a_run_is_not_tried_again(tmp_path: Path) -> None:
    shape = Shape("long", 4, 8, 4096, 64)
    Results(device="H100", kernel=kernel_hash(), current=mark("flex", shape)).save(tmp_path)

    (row,) = begin(tmp_path, "H100").rows
    assert row == Row(shape, "flex", None, UNFINISHED)


def test_results_of_another_device_are_not_mixed_in(tmp_path: Path) -> None:
    Results(device="H100", kernel=kernel_hash()).save(tmp_path)

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
