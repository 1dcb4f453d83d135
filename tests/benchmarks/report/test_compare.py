"""Verdicts on every kind of result that a document may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bilateral_benchmarks.experiments.crossover import Crossover
from bilateral_benchmarks.experiments.document import BenchDocument, load_document
from bilateral_benchmarks.experiments.overhead import Overhead
from bilateral_benchmarks.experiments.scaling import Scaling
from bilateral_benchmarks.experiments.scenarios import ScenarioResult
from bilateral_benchmarks.experiments.serving_cost import Median, ServingCost, queue_spread
from bilateral_benchmarks.experiments.serving_cost import Served as ServedCost
from bilateral_benchmarks.load.schedule import Load
from bilateral_benchmarks.report.compare_reports import Verdict, compare_documents
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import Result

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def committed() -> BenchDocument:
    return load_document(RESULTS / "cpu.json")


def found(document: BenchDocument, kind: type[Result]) -> Any:
    return next(item for item in document.items if isinstance(item, kind))


def verdicts(before: Any, after: Any) -> dict[tuple[str, str], Verdict]:
    one, other = (BenchDocument(title="t", items=(item,)) for item in (before, after))
    return {(v.what, v.measure): v for v in compare_documents(one, other)}


def cost(context: Context, factor: float) -> ServingCost:
    def median(value: float) -> Median:
        return Median(value=value, low=0.99 * value, high=1.01 * value)

    way = ServedCost(
        name="direct",
        p50_ms=median(9 * factor),
        overhead_ms=median(0.8 * factor),
        throughput=median(120 / factor),
        share=median(1.1),
        loaded=(),
    )
    return ServingCost(
        subject="m",
        rounds=8,
        in_process_p50_ms=median(8),
        in_process_throughput=median(100),
        batches={1: 1.0},
        ways=(way,),
        measured=9,
        disturbed=0,
        context=context,
    )


@pytest.mark.parametrize(
    ("factor", "judgement"), [(1.0, "indistinguishable"), (1.3, "slower"), (0.7, "faster")]
)
def test_the_cost_of_serving(committed: BenchDocument, factor: float, judgement: str) -> None:
    context = found(committed, Overhead).context
    judged = verdicts(cost(context, 1.0), cost(context, factor))
    assert {measure for _, measure in judged} == {"p50, ms", "overhead, ms", "items/s"}
    assert {verdict.judgement for verdict in judged.values()} == {judgement}


def test_a_larger_memory_is_larger_and_a_longer_time_without_interval_is_not_judged(
    committed: BenchDocument,
) -> None:
    before = found(committed, Scaling)

    def grown(point: Any) -> Any:
        m = point.measured
        if not m.median_ms:
            return point
        more = {"run_mib": 1.5 * m.run_mib, "median_ms": 2 * m.median_ms}
        return point.model_copy(update={"measured": m.model_copy(update=more)})

    series = tuple(
        one.model_copy(update={"points": tuple(map(grown, one.points))}) for one in before.series
    )
    judged = verdicts(before, before.model_copy(update={"series": series}))
    by_measure: dict[str, set[str]] = {}
    for (_, measure), verdict in judged.items():
        by_measure.setdefault(measure, set()).add(verdict.judgement)
    assert by_measure == {"MiB": {"larger"}, "p50, ms": {"indistinguishable"}}


def test_a_time_with_its_interval_is_judged_at_each_size(committed: BenchDocument) -> None:
    def timed(factor: float) -> Scaling:
        before: Scaling = found(committed, Scaling)
        (series, *_), value = before.series, 10.0 * factor
        ends = {"median_ms": value, "low_ms": 0.98 * value, "high_ms": 1.02 * value}
        points = tuple(
            one.model_copy(update={"measured": one.measured.model_copy(update=ends)})
            for one in series.points
        )
        return before.model_copy(update={"series": (series.model_copy(update={"points": points}),)})

    judged = verdicts(timed(1.0), timed(1.2))
    times = {v.judgement for (_, measure), v in judged.items() if measure == "p50, ms"}
    assert times == {"slower"}


def test_the_rate_of_server(committed: BenchDocument) -> None:
    servers = [
        one
        for one in committed.items
        if isinstance(one, ScenarioResult) and one.scenario == "Server"
    ]
    (before,) = servers
    assert before.value is not None
    for factor, judgement in ((0.9, "indistinguishable"), (0.5, "slower"), (2.0, "faster")):
        after = before.model_copy(update={"value": factor * before.value})
        (verdict,) = verdicts(before, after).values()
        assert verdict.judgement == judgement
        assert verdict.ratio == pytest.approx(factor)


def test_crossover_and_overhead_of_a_committed_report(committed: BenchDocument) -> None:
    for kind in (Crossover, Overhead):
        item = found(committed, kind)
        judged = verdicts(item, item)
        assert judged
        assert {verdict.judgement for verdict in judged.values()} == {"indistinguishable"}
        assert {verdict.ratio for verdict in judged.values()} == {1.0}


def test_the_spread_of_a_queue_is_that_of_its_arrivals() -> None:
    constant = queue_spread(Load(rate=70.0, arrivals="constant"), 0.01, 20_000)
    assert constant == pytest.approx(1.0)
    # A queue with random arrivals, used for 0.7 of the time: no server makes it even.
    assert queue_spread(Load(rate=70.0), 0.01) == pytest.approx(4.15, rel=0.1)
