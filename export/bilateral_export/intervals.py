"""Confidence intervals of a proportion, and of the difference of two paired ones."""

from __future__ import annotations

import math

Z = 1.959963984540054
"""The standard normal distribution's quantile for two-sided intervals of 95 %."""


def wilson_interval(right: int, items: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion. Source: Wilson (1927), JASA 22."""
    share, weight = right / items, Z**2 / items
    centre = (share + weight / 2) / (1 + weight)
    width = Z / (1 + weight) * math.sqrt(share * (1 - share) / items + weight / (4 * items))
    return max(0.0, centre - width), min(1.0, centre + width)


def difference_interval(first_only: int, second_only: int, items: int) -> tuple[float, float]:
    """Return the 95 % interval of the second model's accuracy minus the first's.

    McNemar's two counts b and c as proportions with one added to each, and the variance of their
    difference: d +- z * sqrt((p1 + p2 - d^2) / (n + 2)), p1 = (b + 1) / (n + 2), p2 = (c + 1) /
    (n + 2), d = p2 - p1. Source: Bonett and Price (2012), Journal of Educational and Behavioral
    Statistics 37, "Adjusted Wald confidence interval for a difference of binomial proportions based
    on paired data".
    """
    first, second = ((count + 1) / (items + 2) for count in (first_only, second_only))
    difference = second - first
    width = Z * math.sqrt((first + second - difference**2) / (items + 2))
    return max(-1.0, difference - width), min(1.0, difference + width)
