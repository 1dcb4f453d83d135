"""How requests arrive: closed loop or open loop, and for how long."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from bilateral_export.errors import UserError

Arrivals = Literal["constant", "poisson"]
_CHUNK = 1024


def require_positive(value: float, what: str) -> None:
    """Refuse what is not a rate, a duration or a bound.

    Args:
        value: The number.
        what: What it is, with its value, as the error says it.

    Raises:
        UserError: It is not above 0, infinite, or no number.
    """
    if not 0 < value < math.inf:
        raise UserError(what, "It must be a number above 0.")


class Load(BaseModel):
    """Who sends when.

    Attributes:
        concurrency: Closed loop: so many callers, each sending when its last answer has come.
        rate: Open loop: requests per second, sent on schedule whatever comes back. None: closed.
        arrivals: Open loop: at equal distances, or as a Poisson process.
        processes: Processes that send; they share the concurrency or the rate.
        seed: Of the Poisson process.
        delay_s: Open loop: added to every send time, so that processes take turns.
    """

    model_config = ConfigDict(frozen=True)

    concurrency: int = 1
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    processes: int = 1
    seed: int = 0
    delay_s: float = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Load:
        for name in ("concurrency", "rate", "processes"):
            value = getattr(self, name)
            if value is not None:
                require_positive(value, f"{name} is {value}")
        if self.rate is None and self.processes > self.concurrency:
            raise UserError(
                f"{self.processes} processes cannot share a concurrency of {self.concurrency}",
                "Use as many callers as processes, or more.",
            )
        return self

    def __str__(self) -> str:
        if self.rate is None:
            return f"closed loop, concurrency {self.concurrency}"
        return f"open loop, {self.rate:g} requests/s, {self.arrivals}"

    def shares(self) -> list[Load]:
        """Cut this load into one per process; together they are the same load."""
        shares = []
        for index in range(self.processes):
            callers = len(range(index, self.concurrency, self.processes))
            update: dict[str, float] = {"concurrency": max(1, callers), "processes": 1}
            if self.rate is not None:
                update["rate"] = self.rate / self.processes
                update["seed"] = self.seed * 7919 + index
                if self.arrivals == "constant":  # side by side they would send in bursts
                    update["delay_s"] = index / self.rate
            shares.append(self.model_copy(update=update))
        return shares

    def offsets(self) -> Iterator[float]:
        """Intended send times in seconds from the start, without end. Open loop only."""
        assert self.rate is not None
        generator = np.random.default_rng(self.seed)
        last = self.delay_s
        while True:
            if self.arrivals == "poisson":
                gaps = generator.exponential(1 / self.rate, _CHUNK)
            else:
                gaps = np.full(_CHUNK, 1 / self.rate)
            times = last + np.cumsum(gaps)
            last = float(times[-1])
            yield from times.tolist()


class Plan(BaseModel):
    """How long a measurement warms up and lasts.

    Warm-up is over after `warmup_s` if the last two quarters of it agree, else it goes on, up to
    four times as long. Then windows follow until the last `windows` of them agree: these are the
    measurement. Windows agree when their medians (and, in a closed loop, their throughputs) are
    within `bound` of each other.

    Attributes:
        warmup_s: Least warm-up.
        window_s: Length of one window.
        windows: So many must agree.
        max_windows: After so many the last `windows` are taken and marked as unstable.
        bound: Largest relative difference within the windows that agree.
    """

    model_config = ConfigDict(frozen=True)

    warmup_s: float = 2.0
    window_s: float = 3.0
    windows: int = 3
    max_windows: int = 3
    bound: float = 0.1

    @staticmethod
    def lasting(duration_s: float, warmup_s: float, max_duration_s: float | None = None) -> Plan:
        """Three windows of together `duration_s`, and more up to `max_duration_s` if they differ.

        Raises:
            UserError: A duration is not positive, or the longest is shorter than the other.
        """
        if not (0 < duration_s < math.inf and 0 < warmup_s < math.inf):
            raise UserError(
                f"duration {duration_s:g} s with warm-up {warmup_s:g} s",
                "Both must be numbers above 0.",
            )
        longest_s = duration_s if max_duration_s is None else max_duration_s
        if not duration_s <= longest_s < math.inf:
            raise UserError(
                f"a longest duration of {longest_s:g} s, but one of {duration_s:g} s",
                "Make the longest at least as long.",
            )
        window_s = duration_s / 3
        most = max(3, round(longest_s / window_s))
        return Plan(warmup_s=warmup_s, window_s=window_s, max_windows=most)
