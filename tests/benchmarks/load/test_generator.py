"""The generator's own honesty: against servers whose latency is known."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from known_server import known_server

from bilateral_benchmarks.experiments.served import GrpcTarget
from bilateral_benchmarks.load.run import OverloadedError, run_load
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.statistics.distribution import Distribution
from bilateral_export.errors import UserError

# What it measures is wrong while something else keeps the cores busy.
pytestmark = pytest.mark.timing

STALL_S, SERVICE_S = 0.2, 0.002


def response(outcome) -> Distribution:
    return Distribution.of(outcome.measurement.trace.answered().response)


def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides() -> None:
    # A request intended at phase p < 0.2 s of each second waits 0.2 s - p for the stall to end, so
    # a share 0.2 s - x of all requests takes longer than x: the p99 is 0.2 s - 0.01 s + service.
    analytic_ms = 1e3 * (STALL_S - 0.01 + SERVICE_S)
    with known_server(SERVICE_S, stall_s=STALL_S) as url:
        target, plan = GrpcTarget(url, b""), Plan.lasting(6, 1)
        opened = response(run_load(target, Load(rate=200, arrivals="constant"), plan))
        closed = response(run_load(target, Load(), plan))
    assert opened.at(99.0) == pytest.approx(analytic_ms, rel=0.15)
    hidden = closed.at(99.0)
    assert hidden is not None
    assert hidden < 0.5 * analytic_ms


def test_percentiles_of_a_known_service_time_come_out_right() -> None:
    # Exponential with mean 20 ms: the q-quantile is -20 ms ln(1 - q), plus the round trip.
    with known_server() as url:
        floor = response(run_load(GrpcTarget(url, b""), Load(rate=250), Plan.lasting(1, 0.5)))
    with known_server(0.02, "exponential") as url:
        load = Load(rate=250, seed=3)
        found = response(run_load(GrpcTarget(url, b""), load, Plan.lasting(6, 1)))
    round_trip = floor.at(50.0)
    assert round_trip is not None
    for percentile in found.percentiles[:4]:
        true = -20.0 * math.log(1 - percentile.percent / 100) + round_trip
        assert percentile.low_ms is not None
        assert percentile.high_ms is not None
        # The interval is statistical; what the machine adds to a round trip is allowed besides.
        assert percentile.low_ms - 1.0 <= true <= percentile.high_ms + 1.0


def test_arrivals_have_the_rate_and_the_spread_they_claim() -> None:
    for arrivals, variation in (("constant", 0.0), ("poisson", 1.0)):
        offsets = Load(rate=500, arrivals=arrivals).offsets()
        gaps = np.diff([next(offsets) for _ in range(20_000)])
        assert gaps.mean() == pytest.approx(1 / 500, rel=0.03)
        assert gaps.std() / gaps.mean() == pytest.approx(variation, abs=0.03)


def test_several_processes_together_make_the_load(prompt_server: str) -> None:
    load = Load(rate=300, processes=2)
    outcome = run_load(GrpcTarget(prompt_server, b""), load, Plan.lasting(3, 1))
    sent = len(outcome.measurement.trace)
    assert sent == pytest.approx(900, abs=4 * math.sqrt(900))
    assert outcome.measurement.trace.ok.all()


def _measure_paused(url: str, pipe) -> None:
    outcome = run_load(GrpcTarget(url, b""), Load(rate=100), Plan.lasting(3, 1))
    pipe.send(max(outcome.health.pauses_s))


def test_a_paused_generator_is_noticed(prompt_server: str) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure_paused, args=(prompt_server, theirs))
    process.start()
    assert process.pid is not None
    time.sleep(2.0)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGCONT)
    assert ours.poll(30)
    assert ours.recv() > 0.4
    process.join()


def test_a_server_that_falls_behind_ends_the_run() -> None:
    with known_server(30.0) as url, pytest.raises(OverloadedError, match="cannot keep up"):
        run_load(GrpcTarget(url, b"", 60.0), Load(rate=4000), Plan.lasting(9, 1))


def test_failures_are_reported_with_their_reason() -> None:
    with known_server(5.0) as url, pytest.raises(UserError, match="DEADLINE_EXCEEDED"):
        run_load(GrpcTarget(url, b"", timeout_s=0.05), Load(), Plan.lasting(1, 0.2))


def test_a_load_ends_when_it_is_over_and_not_when_its_next_request_is_due(
    prompt_server: str,
) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match="no request was due"):
        run_load(
            GrpcTarget(prompt_server, b""),
            Load(rate=0.01, arrivals="constant"),
            Plan.lasting(0.3, 0.1),
        )
    assert time.monotonic() - begun < 50  # the first is due after 100 s


class Interrupt(BaseException):
    """What is no error of a measurement, as Ctrl-C."""


@pytest.mark.parametrize("load", [Load(concurrency=2), Load(rate=100), Load(rate=100, processes=2)])
def test_an_interrupted_load_says_nothing_and_leaves_no_process(
    prompt_server: str, load: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float, median_s: float | None) -> None:
        if seconds:
            raise Interrupt

    with pytest.raises(Interrupt):
        run_load(GrpcTarget(prompt_server, b""), load, Plan.lasting(60, 1), interrupt)
    assert multiprocessing.active_children() == []
    gc.collect()
    assert capfd.readouterr().err == ""


def test_no_thread_is_left_behind(prompt_server: str) -> None:
    before = threading.active_count()
    run_load(GrpcTarget(prompt_server, b""), Load(concurrency=3), Plan.lasting(0.6, 0.2))
    assert threading.active_count() <= before + 1  # gRPC keeps one poller
