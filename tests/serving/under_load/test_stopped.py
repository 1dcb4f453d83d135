"""Processes that are stopped for a while and go on (SIGSTOP, SIGCONT), under load."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from tests.serving.server.test_supervise import Supervised
from tests.serving.under_load.confined import Confined
from tests.serving.under_load.steady_caller import PATIENCE_S, SteadyCaller

from bilateral_serving.process_status import children

WHO: dict[str, Callable[[Supervised], Sequence[int]]] = {
    "model": lambda server: [server.model("quadrants")],
    "tritonserver": lambda server: [server.server()],
    "front door": lambda server: [server.door()],
    "supervisor": lambda server: [server.process.pid],
    "all of them": lambda server: [
        server.process.pid,
        *children(server.process.pid),
        *children(server.server()),
    ],
}


@contextlib.contextmanager
def stopped(processes: Sequence[int]) -> Iterator[None]:
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):  # it was ended meanwhile
                os.kill(pid, signal.SIGCONT)


def pause(confined: Confined, caller: SteadyCaller, who: str, seconds: float) -> None:
    confined.server.lines_so_far()
    with stopped(WHO[who](confined.server)):
        time.sleep(seconds)
    caller.wait_for(20)
    account = caller.finish()
    events = confined.server.lines_so_far()
    print(f"\n{who} stopped for {seconds:g} s: {account}; {events}")
    assert account.wrong == 0
    # What the front door had when it was ended is lost with its connections, and what a model's
    # process had with it; the caller has one request under way.
    assert all("UNAVAILABLE" in text or "is not healthy" in text for text in account.failed)
    if who in ("tritonserver", "supervisor", "all of them"):
        assert account.failed == []
    # Those that found no connection were not accepted.
    assert len([text for text in account.failed if "failed to connect" not in text]) <= 2
    assert account.longest_s < PATIENCE_S + seconds


@pytest.mark.parametrize("who", ["front door", "supervisor", "all of them"])
def test_a_moment_costs_nothing(confined: Confined, caller: SteadyCaller, who: str) -> None:
    pause(confined, caller, who, 1.5)
    assert confined.server.lines_so_far() == []


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seconds", [5, 60])
@pytest.mark.parametrize("who", WHO)
def test_a_while_is_survived(
    confined: Confined, caller: SteadyCaller, who: str, seconds: int
) -> None:
    pause(confined, caller, who, seconds)
