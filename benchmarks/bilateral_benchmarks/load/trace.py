"""Request traces: intended, send and answer time of each request of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


class Record(NamedTuple):
    """One request. Times are seconds of the monotonic clock, which all processes here share.

    Attributes:
        intended: When the schedule wanted it sent; in a closed loop, when it was sent.
        sent: When it was sent.
        done: When its answer, or its failure, was known.
        ok: Whether it was answered.
    """

    intended: float
    sent: float
    done: float
    ok: bool


@dataclass(frozen=True)
class Trace:
    """Many records as arrays, ordered by intended time."""

    intended: Seconds
    sent: Seconds
    done: Seconds
    ok: NDArray[np.bool_]

    @staticmethod
    def of(records: Iterable[Record]) -> Trace:
        """Sort records into a trace."""
        rows = sorted(records)
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 4)
        return Trace(table[:, 0], table[:, 1], table[:, 2], table[:, 3] > 0)

    def __len__(self) -> int:
        return len(self.intended)

    def intended_within(self, start: float, end: float) -> Trace:
        """Return the requests that were due in `[start, end)`, however late they finished.

        Selecting by completion instead would lose exactly the slowest ones.
        """
        keep = (self.intended >= start) & (self.intended < end)
        return Trace(self.intended[keep], self.sent[keep], self.done[keep], self.ok[keep])

    def answered(self) -> Trace:
        """Return the requests that were answered."""
        keep = self.ok
        return Trace(self.intended[keep], self.sent[keep], self.done[keep], self.ok[keep])

    def answered_between(self, start: float, end: float) -> int:
        """Return how many answers came in `[start, end)`."""
        return int(((self.done >= start) & (self.done < end) & self.ok).sum())

    @property
    def response(self) -> Seconds:
        """Response time, s: from the intended send time, so that a late send counts."""
        return self.done - self.intended

    @property
    def service(self) -> Seconds:
        """Service time, s: from the actual send time."""
        return self.done - self.sent

    @property
    def lateness(self) -> Seconds:
        """How late each request was sent, s."""
        return self.sent - self.intended
