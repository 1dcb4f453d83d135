"""Steady state: when warm-up is over, and which windows are the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bilateral_benchmarks.load.schedule import Plan
from bilateral_benchmarks.load.trace import Record, Trace

_WARMUP_STRETCH = 4


@dataclass(frozen=True)
class Window:
    """One window: requests that were answered in `[start, end)`.

    Attributes:
        start: On the monotonic clock, s.
        end: The same.
        answered: Requests.
        median_s: Of their response times; NaN if there are none.
    """

    start: float
    end: float
    answered: int
    median_s: float

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.answered / (self.end - self.start)


@dataclass(frozen=True)
class Measurement:
    """What was measured, once it is over.

    Attributes:
        trace: The requests intended within the measurement.
        windows: The windows it consists of.
        warm: Whether warm-up ended because it was steady.
        stable: Whether the windows agree.
        throughput: Answers per second within the measurement.
        warmup_s: How long warm-up took.
    """

    trace: Trace
    windows: tuple[Window, ...]
    warm: bool
    stable: bool
    throughput: float
    warmup_s: float


class SteadyState:
    """Takes records as they come and says when there are enough.

    Args:
        plan: How long to warm up and measure.
        start: When the load began, on the monotonic clock.
        closed: Whether the load is a closed loop; only then throughput must be steady too, because
            in an open loop the schedule sets it.
    """

    def __init__(self, plan: Plan, start: float, closed: bool) -> None:
        self.plan = plan
        self.warm: bool | None = None
        self.finished = False
        self._start = start
        self._closed = closed
        self._records: list[Record] = []
        self._unseen: list[Record] = []
        self._windows: list[Window] = []
        self._boundary = start

    def feed(self, records: Sequence[Record], now: float) -> bool:
        """Take what was completed up to `now`; True when no more load is needed."""
        self._records += records
        self._unseen += records
        while not self.finished and now >= self._boundary + self._window_s:
            self._close_window()
        return self.finished

    @property
    def progress(self) -> tuple[float, float | None]:
        """Seconds measured or warmed up so far, and the last window's median in seconds."""
        last = self._windows[-1] if self._windows else None
        return self._boundary - self._start, last.median_s if last else None

    def measurement(self) -> Measurement:
        """Return the result. Call it after the load has ended and `feed` has got every record."""
        assert self.finished, "the load ended before the plan did"
        windows = tuple(self._windows[-self.plan.windows :])
        start, end = windows[0].start, windows[-1].end
        everything = Trace.of(self._records)
        return Measurement(
            trace=everything.intended_within(start, end),
            windows=windows,
            warm=bool(self.warm),
            stable=self._agree(windows),
            throughput=everything.answered_between(start, end) / (end - start),
            warmup_s=start - self._start,
        )

    @property
    def _window_s(self) -> float:
        return self.plan.warmup_s / 4 if self.warm is None else self.plan.window_s

    def _close_window(self) -> None:
        start, end = self._boundary, self._boundary + self._window_s
        inside = [r for r in self._unseen if r.done < end]
        self._unseen = [r for r in self._unseen if r.done >= end]
        response = [r.done - r.intended for r in inside if r.ok and r.done >= start]
        median = float(np.median(response)) if response else float("nan")
        self._windows.append(Window(start, end, len(response), median))
        self._boundary = end
        if self.warm is None:
            self._end_warmup()
        else:
            enough = len(self._windows) >= self.plan.windows
            steady = enough and self._agree(self._windows[-self.plan.windows :])
            self.finished = steady or len(self._windows) >= self.plan.max_windows

    def _end_warmup(self) -> None:
        elapsed = self._boundary - self._start
        steady = len(self._windows) >= 4 and self._agree(self._windows[-2:])
        if steady or elapsed >= _WARMUP_STRETCH * self.plan.warmup_s:
            self.warm = steady
            self._windows.clear()

    def _agree(self, windows: Sequence[Window]) -> bool:
        medians = np.array([window.median_s for window in windows])
        counts = np.array([float(window.answered) for window in windows])
        if not np.isfinite(medians).all():
            return False
        agree = bool(medians.max() <= medians.min() * (1 + self.plan.bound))
        if self._closed:
            # Counts of a few long requests differ by one without meaning anything.
            agree &= bool(counts.max() - 1 <= counts.min() * (1 + self.plan.bound))
        return agree
