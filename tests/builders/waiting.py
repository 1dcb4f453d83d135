"""Waiting for what comes later than the answer to a call: counts, lines of a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bilateral_serving.process_status import read_status

T = TypeVar("T")
PATIENCE_S = 60.0  # far above what anything takes; a machine may be busy with other things


def eventually(what: Callable[[], T]) -> T:
    """Return what is asked for as soon as it is true; fail after a minute."""
    end = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < end, f"still {found!r} after {PATIENCE_S:g} s"
        time.sleep(0.02)
    return found


def wait_until_busy(pid: int, seconds: float = 0.1) -> None:
    """Return when a process has used so much more processor time: it has the request."""

    def used() -> float:
        status = read_status(pid)
        assert status is not None, f"process {pid} has ended"
        return status.cpu_s

    before = used()
    eventually(lambda: used() >= before + seconds)
