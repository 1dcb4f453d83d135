"""The search for the highest request rate at which a bound still holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.load.report import Report
from bilateral_benchmarks.load.run import OverloadedError
from bilateral_benchmarks.report.tables import number

# The search ends when the rate is known to within this ratio.
RATE_RESOLUTION = 1.05
# It goes down to this part of the first rate, and gives up there.
LOWEST_SHARE = 1 / 16


class Probe(BaseModel):
    """One rate tried.

    Attributes:
        rate: Requests per second.
        p99_ms: Of what must hold; None where it could not be said.
        held: Whether it did.
        why: Why not, or "held".
    """

    model_config = ConfigDict(frozen=True)

    rate: float
    p99_ms: float | None
    held: bool
    why: str

    def cells(self) -> tuple[str, str, str]:
        """Return a row of a table: the rate, the p99 and the reason."""
        return f"tried {self.rate:.1f} requests/s, p99 ms", number(self.p99_ms), self.why


Judge = Callable[[Report], tuple[float | None, str | None]]
"""Says of a run the p99 that matters, in ms, and why it does not hold; None if it does."""


def highest_rate(
    measure: Callable[[float], Report],
    first: float,
    judge: Judge,
    *,
    budget_s: float = math.inf,
) -> tuple[Report | None, tuple[Probe, ...]]:
    """Search the highest rate that holds.

    Doubles or halves from `first` until one rate holds and a higher one does not, then bisects
    geometrically. Assumes that where one rate does not hold, no higher one does.

    Args:
        measure: Runs one rate, in requests per second.
        first: The rate to begin with.
        judge: Says whether it held.
        budget_s: Seconds after which no further rate is tried: the result is then what held so far.

    Returns:
        The report of the highest rate that held (None: none down to LOWEST_SHARE of `first`), and
        every rate tried, in order.
    """
    probes: list[Probe] = []
    end = time.monotonic() + budget_s

    def holds(rate: float) -> Report | None:
        report: Report | None = None
        try:
            report = measure(rate)
            p99_ms, why = judge(report)
        except OverloadedError:
            p99_ms, why = None, "overloaded"
        probes.append(Probe(rate=rate, p99_ms=p99_ms, held=why is None, why=why or "held"))
        return report if why is None else None

    low, high = first, first
    best = holds(first)
    if best:
        while time.monotonic() < end and (report := holds(high := 2 * high)) is not None:
            best, low = report, high
    else:
        while best is None and low > LOWEST_SHARE * first and time.monotonic() < end:
            high, low = low, low / 2
            best = holds(low)
    if best is None:
        return None, tuple(probes)
    while high / low > RATE_RESOLUTION and time.monotonic() < end:
        middle = (low * high) ** 0.5
        report = holds(middle)
        if report is None:
            high = middle
        else:
            best, low = report, middle
    return best, tuple(probes)
