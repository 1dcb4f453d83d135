"""The confidence interval of a proportion."""

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
