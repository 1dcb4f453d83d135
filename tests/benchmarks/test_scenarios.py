"""The rate search and sweeps, against a server that is a known queue."""

from __future__ import annotations

import numpy as np
import pytest
from known_server import known_server

from bilateral_benchmarks.load import Load, Plan
from bilateral_benchmarks.report import Context, Report, summarise
from bilateral_benchmarks.run import OverloadedError, run_load
from bilateral_benchmarks.scenarios import RATE_RESOLUTION, highest_rate, named_scenario
from bilateral_benchmarks.served import GrpcTarget
from bilateral_benchmarks.sweep import sweep
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

    best, probes = highest_rate(at_rate, 40.0, 50.0)
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
    best, probes = highest_rate(lambda rate: slow, 40.0, 50.0)
    assert best is None
    assert {probe.why for probe in probes} == {"p99 over the bound"}


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
