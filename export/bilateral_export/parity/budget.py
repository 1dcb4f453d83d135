"""The error budget: a multiple of eager PyTorch's error in the same precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bilateral_export.parity.measure import Reference

DEFAULT_FACTOR = 4.0
CONFIDENCE = 0.99
# One-sided quantile of the normal distribution at CONFIDENCE.
_QUANTILE = 2.326
# Where eager PyTorch's largest error lies in its distribution, in standard deviations above the
# mean: one item of 740 has a larger one. Fewer items than _FEW say too little of the spread, and
# items of two kinds (empty ones among others) too much: it is at most _UNSEEN times what was seen.
_TAIL = 3.0
_FEW = 8
_UNSEEN = 2.0


@dataclass(frozen=True)
class Budget:
    """The two limits that an output's errors are held to.

    Attributes:
        typical: Largest allowed ratio of the candidate's typical error to eager PyTorch's, with
            confidence `CONFIDENCE`. The typical ratio is the geometric mean over items.
        worst: Largest allowed ratio of the largest error to `largest_error` of eager PyTorch.
    """

    typical: float = DEFAULT_FACTOR / 2
    worst: float = DEFAULT_FACTOR

    @classmethod
    def of(cls, factor: float) -> Budget:
        """Return the budget of a factor: the factor for the worst item, half of it typically."""
        return cls(typical=factor / 2, worst=factor)


@dataclass(frozen=True)
class Quotient:
    """How one output's errors compare with eager PyTorch's.

    Attributes:
        typical: Geometric mean over items of error / eager error.
        typical_low: Lower end of its one-sided confidence interval.
        typical_high: Upper end.
        worst: Largest error / `largest_error` of eager PyTorch.
        spread: Standard deviation of the logarithm of error / eager error.
        count: How many errors there are.
    """

    typical: float
    typical_low: float
    typical_high: float
    worst: float
    spread: float = 0.0
    count: int = 1

    def within(self, budget: Budget) -> bool:
        """Return whether the typical ratio, with confidence, and the worst are within budget."""
        return self.typical_high <= budget.typical and self.worst <= budget.worst

    def enough(self, budget: Budget) -> int | None:
        """Return how many errors would decide, where these are too few; None where more would not.

        With twice as many as would do if the next ones were like these.
        """
        room = math.log(budget.typical / self.typical) if math.isfinite(self.typical) else 0.0
        if self.typical_high <= budget.typical or room <= 0:
            return None
        return math.ceil(2 * (_QUANTILE * self.spread / room) ** 2)


def quotient(errors: Reference, eager_errors: Reference, floor: float) -> Quotient:
    """Return how errors of the same items compare.

    Logarithms of ratios of rounding errors are close to normally distributed, so the interval is
    that of their mean. Errors below `floor` count as that much: a model may be exact in eager
    PyTorch, and rounding is always allowed.

    Args:
        errors: Errors of the candidate, one per item.
        eager_errors: Those of eager PyTorch in the same precision.
        floor: From `measure.error_floor`.
    """
    eager = np.maximum(eager_errors, floor)
    worst = float(errors.max()) / largest_error(eager_errors, floor)
    if not np.isfinite(errors).all():
        return Quotient(math.inf, math.inf, math.inf, math.inf)
    logs = np.log(np.maximum(errors, floor) / eager)
    mean = float(logs.mean())
    spread = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    half_width = _QUANTILE * spread / math.sqrt(len(logs))
    return Quotient(
        typical=math.exp(mean),
        typical_low=math.exp(mean - half_width),
        typical_high=math.exp(mean + half_width),
        worst=worst,
        spread=spread,
        count=len(logs),
    )


def largest_error(eager_errors: Reference, floor: float) -> float:
    """Return the largest error that eager PyTorch makes on inputs like these.

    The largest of a few dozen is a matter of luck, and so would be a test against it: one item on
    which another order of the same sums loses more bits would fail a correct runtime. So it is at
    least what the spread of the errors lets expect of more items.

    Args:
        eager_errors: Errors of eager PyTorch, one per item.
        floor: From `measure.error_floor`.
    """
    eager = np.maximum(eager_errors, floor)
    seen = float(eager.max())
    if len(eager) < _FEW or not math.isfinite(seen):
        return seen
    logs = np.log(eager)
    expected = math.exp(float(logs.mean()) + _TAIL * float(logs.std(ddof=1)))
    return min(max(seen, expected), _UNSEEN * seen)


def worst_error(eager_errors: Reference, floor: float, factor: float) -> float:
    """Return what the largest error may be."""
    return factor * largest_error(eager_errors, floor)
