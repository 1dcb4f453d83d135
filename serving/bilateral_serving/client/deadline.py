"""The deadline of one call."""

from __future__ import annotations

import time

from bilateral_export.errors import UserError

# gRPC counts nanoseconds in 64 bits: with some nine times as much a call is late before it begins.
_LONGEST_S = 1e9


class Deadline:
    """The end of one call, shared by everything the call has to do; infinity is 30 years.

    Raises:
        UserError: The seconds are not above 0.
    """

    def __init__(self, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise UserError(f"timeout {timeout_s:g} s", "It must be above 0.")
        self.timeout_s = timeout_s
        self._end = time.monotonic() + min(timeout_s, _LONGEST_S)

    @property
    def left_s(self) -> float:
        """Seconds left; at least a millisecond, so that gRPC reports the deadline itself."""
        return max(0.001, self._end - time.monotonic())
