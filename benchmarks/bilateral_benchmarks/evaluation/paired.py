"""Paired statistics: two models' answers about the same items."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Of n items that one model alone gets right, each is either's with probability 1/2 if both are
    equally accurate: p = min(1, 2 * sum_{k <= min(b, c)} C(n, k) / 2^n). Source: McNemar (1947),
    Psychometrika 12, with the binomial distribution in place of its approximation.

    Args:
        first_only: Items that only the first model gets right.
        second_only: Items that only the second gets right.
    """
    count = first_only + second_only
    term = tail = 1
    for k in range(1, min(first_only, second_only) + 1):
        term = term * (count - k + 1) // k
        tail += term
    return min(1.0, 2 * float(tail / 2**count))


def bootstrap_interval(
    items: int, statistic: Callable[[NDArray[np.int64]], float]
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic of items drawn with replacement.

    The same draws every time, so that a report can be repeated. Source: Efron (1979), Annals of
    Statistics 7.

    Args:
        items: How many there are.
        statistic: Takes how often each item was drawn, `[items]`.
    """
    generator = np.random.default_rng(0)
    draws = (generator.integers(0, items, items) for _ in range(RESAMPLES))
    values = [statistic(np.bincount(drawn, minlength=items)) for drawn in draws]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_iou(intersections: NDArray[np.int64], unions: NDArray[np.int64]) -> float:
    """Return the mean over classes of intersection over union; NaN where there is no class.

    Classes that neither the masks nor the answers have are left out.

    Args:
        intersections: Pixels `[classes]` of all items that are a class in the mask and the answer.
        unions: Pixels `[classes]` that are the class in either.
    """
    present = unions > 0
    return float((intersections[present] / unions[present]).mean()) if present.any() else math.nan
