"""Percentiles with confidence intervals, and a refusal where the sample cannot support one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.95
PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
# Batches from which the correlation of neighbouring requests is estimated.
_BATCHES = 40
_MIN_BATCH = 10


class Percentile(BaseModel):
    """One percentile of a latency, in milliseconds.

    Attributes:
        percent: Which, such as 99.
        value_ms: The sample's percentile. None: the sample is too small to say it.
        low_ms: Lower end of the confidence interval. None: the sample sets no lower limit.
        high_ms: Upper end. None: the sample sets no upper limit, because it is small or because
            its requests are too much alike in time to count as many.
        needed: How many requests this percentile needs to be said at all.
    """

    model_config = ConfigDict(frozen=True)

    percent: float
    value_ms: float | None
    low_ms: float | None
    high_ms: float | None
    needed: int


def percentile(values: NDArray[np.float64], percent: float) -> Percentile:
    """Return a percentile of `values` with its confidence interval.

    The interval is the distribution-free one between two order statistics: the number of values
    below the true percentile is binomial (David and Nagaraja, Order Statistics, 7.1). Requests near
    in time are slow together, so for the interval the sample counts as smaller by the design
    effect of batch means. The percentile is refused where even independent requests would be too
    few for the largest of them to lie above it.

    Args:
        values: Seconds, in the order in which they were measured.
        percent: Between 0 and 100, both excluded.
    """
    q = percent / 100
    tail = (1 - CONFIDENCE) / 2
    needed = math.ceil(math.log(tail) / math.log(max(q, 1 - q)))
    count = len(values)
    if count < needed:
        return Percentile(percent=percent, value_ms=None, low_ms=None, high_ms=None, needed=needed)
    ordered = np.sort(values)
    value = ordered[math.ceil(q * count) - 1]
    effective = max(1, int(count / design_effect(values <= value)))
    low, high = _binomial_ranks(effective, q, tail)

    def at(rank: int) -> float | None:
        """The order statistic whose share of the sample is that of `rank` in the effective one."""
        if not 1 <= rank <= effective:
            return None
        return 1e3 * float(ordered[max(0, math.ceil(rank / effective * count) - 1)])

    return Percentile(
        percent=percent,
        value_ms=1e3 * float(value),
        low_ms=at(low),
        high_ms=at(high),
        needed=needed,
    )


def design_effect(below: NDArray[np.bool_]) -> float:
    """By how much correlation in time widens the variance of a share; at least 1.

    The variance of batch means over that of as many independent draws (Law, Simulation Modeling
    and Analysis, 9.5.3).

    Args:
        below: Per request, in order, whether it lies below the percentile.
    """
    size = len(below) // _BATCHES
    share = float(below.mean())
    if size < _MIN_BATCH or share in (0.0, 1.0):
        return 1.0
    means = below[: size * _BATCHES].reshape(_BATCHES, size).mean(axis=1)
    return max(1.0, size * float(means.var(ddof=1)) / (share * (1 - share)))


def _binomial_ranks(count: int, q: float, tail: float) -> tuple[int, int]:
    """Return the ranks (from 1) of the order statistics around the q-quantile, with 1 - 2 tail.

    Rank 0 or count + 1 means that the sample has no such order statistic.
    """
    centre, spread = count * q, math.sqrt(count * q * (1 - q))
    first = max(0, math.floor(centre - 10 * spread - 10))
    last = min(count, math.ceil(centre + 10 * spread + 10))
    log_choose = np.array(
        [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            for k in range(first, last + 1)
        ]
    )
    k = np.arange(first, last + 1)
    cumulative = np.cumsum(np.exp(log_choose + k * math.log(q) + (count - k) * math.log1p(-q)))
    low = first + int(np.searchsorted(cumulative, tail))
    high = first + int(np.searchsorted(cumulative, 1 - tail)) + 1
    return low, high
