"""A latency's distribution: percentiles, moments and the histogram they can be checked against."""

from __future__ import annotations

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.statistics.percentiles import PERCENTS, Percentile, percentile

# Microseconds: 1 us to 1 h, three significant digits.
_LOWEST_US, _HIGHEST_US, _DIGITS = 1, 3_600_000_000, 3


class Distribution(BaseModel):
    """A latency over all requests of a measurement, in milliseconds.

    Attributes:
        count: Requests.
        mean_ms: Mean.
        std_ms: Standard deviation of the sample.
        min_ms: Shortest.
        max_ms: Longest.
        percentiles: Each with its confidence interval.
        hdr: The whole distribution in microseconds as a compressed HdrHistogram (V2, base64).
    """

    model_config = ConfigDict(frozen=True)

    count: int
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    percentiles: tuple[Percentile, ...]
    hdr: str

    @staticmethod
    def of(seconds: NDArray[np.float64]) -> Distribution:
        """Summarise at least one value, given in the order of measurement."""
        milliseconds = 1e3 * seconds
        return Distribution(
            count=len(seconds),
            mean_ms=float(milliseconds.mean()),
            std_ms=float(milliseconds.std(ddof=1)) if len(seconds) > 1 else 0.0,
            min_ms=float(milliseconds.min()),
            max_ms=float(milliseconds.max()),
            percentiles=tuple(percentile(seconds, percent) for percent in PERCENTS),
            hdr=_encode(seconds),
        )

    def at(self, percent: float) -> float | None:
        """Return a percentile in milliseconds; None where the sample cannot support it."""
        return next(p.value_ms for p in self.percentiles if p.percent == percent)

    def curve(self, percents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the histogram's values in milliseconds at any percents, for plots."""
        histogram = HdrHistogram.decode(self.hdr.encode())
        return np.array([histogram.get_value_at_percentile(p) / 1e3 for p in percents])


def _encode(seconds: NDArray[np.float64]) -> str:
    histogram = HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)
    values, counts = np.unique(np.maximum(np.round(seconds * 1e6), 1), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        histogram.record_value(min(int(value), _HIGHEST_US), count)
    return str(histogram.encode().decode())
