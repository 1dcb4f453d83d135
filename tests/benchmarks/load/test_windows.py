"""Which requests are the measurement, and when it is steady: on requests whose times are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bilateral_benchmarks.load.schedule import Plan
from bilateral_benchmarks.load.trace import Record, Trace
from bilateral_benchmarks.load.windows import Measurement, SteadyState

PLAN = Plan(warmup_s=4, window_s=2, windows=3, max_windows=3)


def measured(
    plan: Plan, latency_s: Callable[[float], float], *, closed: bool = True, gap_s: float = 0.1
) -> Measurement:
    """A load of one request every `gap_s`, fed to a steady_state second by second."""
    steady_state = SteadyState(plan, 0.0, closed)
    records = [Record(at, at, at + latency_s(at), True) for at in np.arange(0.0, 100.0, gap_s)]
    second = 0
    while not steady_state.feed([r for r in records if second <= r.done < second + 1], second + 1):
        second += 1
    steady_state.feed([r for r in records if r.done >= second + 1], 200.0)
    return steady_state.measurement()


def test_a_late_send_counts_in_the_response_time_and_not_in_the_service_time() -> None:
    trace = Trace.of([Record(intended=1.0, sent=1.5, done=3.0, ok=True)])
    assert (trace.response[0], trace.service[0], trace.lateness[0]) == (2.0, 1.5, 0.5)


def test_a_steady_load_is_measured_right_after_its_warm_up() -> None:
    found = measured(PLAN, lambda at: 0.01)
    assert (found.warm, found.stable, found.warmup_s) == (True, True, 4)
    assert [(window.start, window.end) for window in found.windows] == [(4, 6), (6, 8), (8, 10)]
    assert found.throughput == pytest.approx(10, rel=0.02)
    assert len(found.trace) == pytest.approx(60, abs=1)


def test_requests_count_where_they_were_due_however_late_they_finish() -> None:
    found = measured(PLAN, lambda at: 50.0 if 9 < at < 9.15 else 0.01, closed=False)
    assert found.trace.response.max() == pytest.approx(50.0)


def test_warm_up_goes_on_while_it_changes_but_not_for_ever() -> None:
    found = measured(PLAN, lambda at: max(0.01, 0.5 - 0.07 * at))
    assert found.warm
    assert 7 <= found.warmup_s <= 9
    never = measured(PLAN, lambda at: 0.001 * 1.2**at)
    assert (never.warm, never.warmup_s) == (False, 16)


def test_windows_follow_until_three_agree_or_there_are_too_many() -> None:
    def steps(at: float) -> float:
        return 0.01 if at < 7 else 0.02

    short = measured(PLAN, steps)
    assert not short.stable
    longer = measured(PLAN.model_copy(update={"max_windows": 9}), steps)
    assert longer.stable
    assert longer.windows[0].start == 8
    assert longer.trace.response == pytest.approx(0.02)


@pytest.mark.parametrize("closed", [True, False])
def test_throughput_must_be_steady_in_a_closed_loop_only(closed: bool) -> None:
    def times() -> Iterator[float]:
        yield from np.arange(0.0, 6.0, 0.05)
        yield from np.arange(6.0, 30.0, 0.2)

    steady_state = SteadyState(PLAN, 0.0, closed)
    steady_state.feed([Record(at, at, at + 0.01, True) for at in times()], 30.0)
    assert steady_state.measurement().stable is not closed
