"""Retries: how many of one call, how long before each, and a budget for all calls of a client."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from bilateral_serving.client.deadline import Deadline

# Seconds before the first retry, at most; before each further one twice as long.
_FIRST_PAUSE_S = 0.1
_BUDGET = 10.0
_EARNED = 0.1


class Retries:
    """The retries of a client's calls.

    Every retry takes 1 from a budget of 10, which each call that is answered fills by 0.1. So a
    server that refuses everybody gets at most a tenth more calls by retries.

    Args:
        most: Retries of one call.
        broken: Whether an inference whose connection broke is one of these calls.
        chance: Numbers from 0 to 1, which keep callers apart that failed together.
    """

    def __init__(
        self, most: int, broken: bool = False, chance: Callable[[], float] = random.random
    ) -> None:
        self.most = most
        self.broken = broken
        self._chance = chance
        self._left = _BUDGET
        self._lock = threading.Lock()

    def answered(self) -> None:
        """Take note of a call that was answered."""
        if self._left < _BUDGET:
            with self._lock:
                self._left = min(_BUDGET, self._left + _EARNED)

    def spend(self) -> bool:
        """Take one retry from the budget; False if there is none left."""
        with self._lock:
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True

    def pause(self, attempt: int, deadline: Deadline) -> float | None:
        """Return seconds to wait before a call is made again; None: it is not.

        Args:
            attempt: How often it was made again before.
            deadline: The call's deadline.
        """
        pause = _FIRST_PAUSE_S * 2.0**attempt * (0.5 + 0.5 * self._chance())
        if attempt >= self.most or pause >= deadline.left_s or not self.spend():
            return None
        return pause
