"""The end of one call."""

from __future__ import annotations

import time

from bilateral_export.errors import UserError


class Deadline:
    """The end of one call, shared by everything the call has to do.

    Raises:
        UserError: The seconds are not above 0.
    """

    def __init__(self, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise UserError(f"timeout {timeout_s:g} s", "It must be above 0.")
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left; at least a millisecond, so that gRPC reports the deadline itself."""
        return max(0.001, self._end - time.monotonic())
