"""Loads and plans: what is asked for is what is sent, and what cannot be is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_export.errors import UserError


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_constant_rate_without_bursts(processes: int) -> None:
    load = Load(rate=100, arrivals="constant", processes=processes)
    shares = [list(itertools.islice(share.offsets(), 500)) for share in load.shares()]
    gaps = np.diff(sorted(itertools.chain(*shares)))
    np.testing.assert_allclose(gaps, 1 / 100, rtol=1e-9)


def test_processes_share_a_poisson_process_of_the_same_rate() -> None:
    shares = Load(rate=100, processes=2).shares()
    first, second = (np.array(list(itertools.islice(s.offsets(), 5000))) for s in shares)
    assert not np.array_equal(first, second)
    together = np.sort(np.concatenate([first, second]))
    gaps = np.diff(together[together < min(first[-1], second[-1])])
    assert gaps.mean() == pytest.approx(1 / 100, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


@pytest.mark.parametrize(("concurrency", "processes"), [(4, 2), (5, 3)])
def test_processes_share_the_callers(concurrency: int, processes: int) -> None:
    shares = Load(concurrency=concurrency, processes=processes).shares()
    assert sum(share.concurrency for share in shares) == concurrency
    assert {share.processes for share in shares} == {1}


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="number above 0"):
        Load(rate=rate)


@pytest.mark.parametrize(
    ("duration_s", "warmup_s", "longest_s"),
    [(0, 1, None), (math.nan, 1, None), (math.inf, 1, None), (1, 0, None)]
    + [(1, 1, longest) for longest in (0.5, 0, -1, math.nan, math.inf)],
)
def test_a_duration_that_cannot_be_is_refused(
    duration_s: float, warmup_s: float, longest_s: float | None
) -> None:
    with pytest.raises(UserError, match="duration"):
        Plan.lasting(duration_s, warmup_s, longest_s)


def test_a_plan_has_three_windows_and_as_many_more_as_fit() -> None:
    assert Plan.lasting(9, 2).max_windows == 3
    assert Plan.lasting(9, 2).window_s == 3
    assert Plan.lasting(3, 2, 8).max_windows == 8
