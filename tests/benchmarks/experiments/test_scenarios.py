"""The rate search and sweeps, against a server that is a known queue."""

from __future__ import annotations

import time
from itertools import takewhile

import numpy as np
import pytest
from known_server import known_server

from bilateral_benchmarks.experiments import generator_limit
from bilateral_benchmarks.experiments.scenarios import kept_schedule, named_scenario, within
from bilateral_benchmarks.experiments.served import GrpcTarget
from bilateral_benchmarks.experiments.sweep import sweep
from bilateral_benchmarks.load.rate_search import RATE_RESOLUTION, highest_rate
from bilateral_benchmarks.load.report import Report, summarise
from bilateral_benchmarks.load.run import OverloadedError, run_load
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.statistics.distribution import Distribution
from bilateral_export.errors import UserError

# What it measures is wrong while something else keeps the cores busy.
pytestmark = pytest.mark.timing

PLAN = Plan.lasting(1.2, 0.2)


def measured(url: str, load: Load) -> Report:
    arrays = {"x": np.zeros((1, 2), dtype=np.float32)}
    outcome = run_load(GrpcTarget(url, b""), load, PLAN)
    return summarise("served", "known", arrays, load, PLAN, outcome, Context.now())


@pytest.fixture(scope="module")
def example(prompt_server: str) -> Report:
    return measured(prompt_server, Load(rate=400))


@pytest.mark.parametrize("limit", [3.0, 37.0, 480.0])
def test_the_search_finds_the_highest_rate_that_holds(example: Report, limit: float) -> None:
    def at_rate(rate: float) -> Report:
        if rate > 10 * limit:
            raise OverloadedError(Load(rate=rate))
        p99 = 20.0 if rate <= limit else 80.0
        percentiles = tuple(
            p.model_copy(update={"value_ms": p99}) for p in example.response.percentiles
        )
        response = example.response.model_copy(update={"percentiles": percentiles})
        load = example.load.model_copy(update={"rate": rate})
        return example.model_copy(
            update={"response": response, "load": load, "valid": True, "problems": ()}
        )

    best, probes = highest_rate(at_rate, 40.0, within(50.0))
    assert best is not None
    assert best.load.rate is not None
    assert limit / RATE_RESOLUTION <= best.load.rate <= limit
    assert any(not probe.held for probe in probes)


def test_the_search_gives_up_on_a_server_that_is_always_too_slow(example: Report) -> None:
    slow = example.model_copy(
        update={
            "response": example.response.model_copy(
                update={
                    "percentiles": tuple(
                        p.model_copy(update={"value_ms": 900.0})
                        for p in example.response.percentiles
                    )
                }
            )
        }
    )
    best, probes = highest_rate(lambda rate: slow, 40.0, within(50.0))
    assert best is None
    assert {probe.why for probe in probes} == {"p99 over the bound"}


@pytest.mark.parametrize(
    ("late_ms", "errors", "pause_ms", "kept"),
    [(4.0, 0, 5.0, True), (6.0, 0, 5.0, False), (4.0, 1, 5.0, False), (4.0, 0, 200.0, False)],
)
def test_sends_late_by_a_tenth_of_the_bound_count_and_failures_and_pauses_do_not(
    example: Report, late_ms: float, errors: int, pause_ms: float, kept: bool
) -> None:
    assert example.lateness is not None
    percentiles = tuple(
        p.model_copy(update={"value_ms": late_ms}) for p in example.lateness.percentiles
    )
    lateness = example.lateness.model_copy(update={"percentiles": percentiles})
    report = example.model_copy(
        update={
            "lateness": lateness,
            "errors": errors,
            "longest_pause_ms": pause_ms,
            "valid": False,
        }
    )
    assert kept_schedule(report, bound_ms=50.0) is kept


def test_the_search_ends_with_what_it_has_when_its_time_is_over(example: Report) -> None:
    def at_rate(rate: float) -> Report:
        time.sleep(0.03)
        return example.model_copy(update={"load": Load(rate=rate)})

    best, probes = highest_rate(at_rate, 1.0, lambda report: (1.0, None), budget_s=0.1)
    assert len(probes) <= 5  # a rate is begun at 0, 0.03, 0.06 and 0.09 s, not later than 0.1 s
    assert best is not None
    assert best.load.rate == max(probe.rate for probe in probes)


def test_the_search_finds_the_capacity_of_a_known_queue(example: Report) -> None:
    """One request at a time, 2 ms each: Lindley's recursion says how long each of them waits.

    With Poisson arrivals at a rate r the mean response is s + r s^2 / (2 (1 - r s)) for the service
    time s (Pollaczek and Khinchine), which tells a recursion gone wrong.
    """
    service_s, bound_ms = 0.002, 15.0
    rows: list[tuple[float, float, float]] = []

    def at_rate(rate: float) -> Report:
        load = Load(rate=rate)
        arrivals = np.array(list(takewhile(lambda at: at < 20_000 / rate, load.offsets())))
        walk = np.cumsum(service_s - np.diff(arrivals, prepend=0.0))
        response = walk - np.minimum.accumulate(np.minimum(walk, 0.0)) + service_s
        waited = Distribution.of(response)
        rows.append((rate, float(response.mean()), waited.at(99.0) or 0.0))
        return example.model_copy(
            update={"response": waited, "load": load, "valid": True, "problems": ()}
        )

    best, probes = highest_rate(at_rate, 100.0, within(bound_ms))
    rate, mean_s, _ = rows[0]
    assert mean_s == pytest.approx(
        service_s + rate * service_s**2 / (2 * (1 - rate * service_s)), rel=0.02
    )
    assert best is not None
    assert best.load.rate is not None
    assert best.load.rate == max(rate for rate, _, p99_ms in rows if p99_ms <= bound_ms)
    missed = min(rate for rate, _, p99_ms in rows if p99_ms > bound_ms)
    assert best.load.rate < missed <= RATE_RESOLUTION * best.load.rate
    assert missed < 1 / service_s
    assert len(probes) == len(rows)


def test_closed_loop_throughput_grows_with_concurrency() -> None:
    with known_server(0.01) as url:
        found = sweep(
            "concurrency",
            [1, 4],
            "known",
            lambda value: measured(url, Load(concurrency=int(value))),
        )
    one, four = (point.report for point in found.points)
    assert one is not None
    assert four is not None
    assert four.throughput == pytest.approx(4 * one.throughput, rel=0.25)


def test_unknown_names_are_refused() -> None:
    assert named_scenario("singlestream") == "SingleStream"
    with pytest.raises(UserError, match="SingleStream, MultiStream, Server, Offline"):
        named_scenario("Batch")
    with pytest.raises(UserError, match="no values"):
        sweep("batch", [], "x", lambda value: pytest.fail("nothing to measure"))


def test_the_generator_s_limit_is_judged_by_the_send_delay(example: Report) -> None:
    assert example.lateness is not None

    def late_by(delay_ms: float) -> Report:
        delays = np.full(400, 1e-3 * delay_ms)
        return example.model_copy(update={"lateness": Distribution.of(delays)})

    assert generator_limit.judge(late_by(0.9))[1] is None
    assert generator_limit.judge(late_by(1.1))[1] == "p99 of the send delay over the bound"
    few = example.model_copy(update={"lateness": Distribution.of(np.full(9, 1e-4))})
    assert generator_limit.judge(few) == (None, "too few requests to say")
