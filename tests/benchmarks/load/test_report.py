"""When a report calls itself invalid: from requests and heartbeats that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from bilateral_benchmarks.load.generator import GeneratorHealth
from bilateral_benchmarks.load.report import Report, summarise
from bilateral_benchmarks.load.run import Outcome
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.load.trace import Record, Trace
from bilateral_benchmarks.load.windows import Measurement, Window
from bilateral_benchmarks.report.context import Context


def reported(late_s: float = 0.0, service_s: float = 0.002, pause_s: float = 0.0) -> Report:
    """An open loop of 500 requests, 100 a second, of which each was sent late."""
    due = [0.01 * number for number in range(500)]
    trace = Trace.of(Record(t, t + late_s, t + late_s + service_s, True) for t in due)
    window = Window(0.0, 5.0, len(trace), service_s)
    measurement = Measurement(trace, (window,), True, True, 100.0, 1.0)
    health = GeneratorHealth(pauses_s=(pause_s,), overrun=False, failure=None)
    arrays = {"x": np.zeros((1, 2), dtype=np.float32)}
    outcome = Outcome(measurement, health)
    return summarise("served", "x", arrays, Load(rate=100), Plan(), outcome, Context.now())


def test_a_run_on_schedule_is_valid() -> None:
    assert reported(late_s=0.0009, pause_s=0.09).valid
    # A tenth of a long service time is no lateness to speak of.
    assert reported(late_s=0.009, service_s=0.1).valid


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (reported(late_s=0.0011), "the generator was late"),
        (reported(late_s=0.011, service_s=0.1), "the generator was late"),
        (reported(pause_s=0.11), "stood still for 110 ms"),
    ],
)
def test_a_run_off_schedule_is_invalid(found: Report, problem: str) -> None:
    assert not found.valid
    assert problem in found.problems[0]
