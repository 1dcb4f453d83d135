"""Interleaved timing, A B A B, so that the machine's other load affects all contenders alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bilateral_benchmarks.statistics.percentiles import Percentile, percentile
from bilateral_export.errors import UserError

Call = Callable[[], object]

BLOCK_S = 0.15
MIN_CALLS = 2
# Thread pools of the last contender spin for a while after their last call.
PAUSE_S = 0.05


@dataclass(frozen=True)
class Ratio:
    """How much faster than another a contender is, round by round; above 1 is faster.

    Attributes:
        value: Median of the rounds' ratios.
        low: Lower end of its 95% interval; None with fewer than six rounds.
        high: Upper end.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Blocks:
    """Median seconds of a call, one row per contender and one column per round."""

    names: tuple[str, ...]
    medians: NDArray[np.float64]
    fastest: NDArray[np.float64]

    @property
    def rounds(self) -> int:
        """How many."""
        return self.medians.shape[1]

    def seconds(self, name: str) -> float:
        """Return the median over the rounds."""
        return float(np.median(self.medians[self.names.index(name)]))

    def median(self, name: str) -> Percentile:
        """Return the median over the rounds with its confidence interval."""
        return percentile(self.medians[self.names.index(name)], 50.0)

    def minimum(self, name: str) -> float:
        """Return the fastest single call."""
        return float(self.fastest[self.names.index(name)])

    def ratio(self, name: str, baseline: str) -> Ratio:
        """Return the baseline's time over the contender's, paired by round."""
        rows = self.medians
        return ratio_of(rows[self.names.index(baseline)] / rows[self.names.index(name)])


OnRound = Callable[[Blocks, int], None]
"""Called with the rounds so far, and how many there will be."""


def ratio_of(paired: NDArray[np.float64]) -> Ratio:
    """Return the median of paired ratios with its distribution-free interval."""
    found = percentile(paired, 50.0)  # in thousandths: it is made for seconds
    ends = (None if end is None else end / 1e3 for end in (found.low_ms, found.high_ms))
    low, high = ends
    return Ratio(float(np.median(paired)), low, high)


def interleave(
    contenders: Mapping[str, Call],
    rounds: int,
    *,
    block_s: float = BLOCK_S,
    on_round: OnRound | None = None,
) -> Blocks:
    """Time every contender in every round, in an order that rotates; return the blocks.

    A block is as many calls as fit into `block_s`, two at least; the first call of a block warms
    the caches that the last contender cleared and is not counted.

    Args:
        contenders: What to call, by name. Each was called before (compiled, warm).
        rounds: How often.
        block_s: Seconds of one contender's turn.
        on_round: Called after each round.

    Raises:
        UserError: There is no round.
    """
    if rounds < 1:
        raise UserError(f"{rounds} rounds", "It must be at least 1.")
    names = tuple(contenders)
    medians = np.empty((len(names), rounds))
    fastest = np.full(len(names), np.inf)
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            times = _block(contenders[name], block_s)
            row = names.index(name)
            medians[row, number] = np.median(times)
            fastest[row] = min(fastest[row], min(times))
        if on_round:
            on_round(Blocks(names, medians[:, : number + 1], fastest), rounds)
    return Blocks(names, medians, fastest)


def _block(call: Call, block_s: float) -> Sequence[float]:
    time.sleep(PAUSE_S)
    call()
    times: list[float] = []
    end = time.perf_counter() + block_s
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return times
