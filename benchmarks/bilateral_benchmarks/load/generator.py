"""The load generator: asyncio callers on a schedule, in this process.

Honesty is its one virtue. Latency counts from the time the schedule intended, requests in flight
at the end are waited for, and a heartbeat notices when this process itself was not running.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bilateral_benchmarks.load.schedule import Load
from bilateral_benchmarks.load.trace import Record

HEARTBEAT_S = 0.01
TICK_S = 0.1
# A server that is this far behind will not catch up; the run ends before memory does.
MAX_OUTSTANDING = 10_000

Send = Callable[[], Awaitable[tuple[float, str | None]]]
"""Sends one request and waits for its answer. Returns when that was here, on the monotonic clock,
and why the request failed, or None; it must not raise."""

Sink = Callable[[list[Record], float], bool]
"""Takes the records completed since its last call, and the time; True ends the load."""

Result = TypeVar("Result")


class Target(Protocol):
    """Something that requests can be sent to, from `__aenter__` to `__aexit__`."""

    async def __aenter__(self) -> Send:
        """Connect; the result sends one request."""

    async def __aexit__(self, *error: object) -> None:
        """Disconnect."""


@dataclass(frozen=True)
class GeneratorHealth:
    """How the generator itself behaved.

    Attributes:
        pauses_s: Gaps of the heartbeat, in seconds beyond its period: this process did not run.
        overrun: Whether it gave up because too many requests were outstanding.
        failure: Why the first request that failed did.
    """

    pauses_s: tuple[float, ...]
    overrun: bool
    failure: str | None


async def generate(target: Target, load: Load, start: float, sink: Sink) -> GeneratorHealth:
    """Put `load` on `target` from the time `start` on until `sink` has enough.

    Requests in flight at the end are waited for and given to `sink` in a last call.
    """
    run = _Run(load, start, sink)
    async with target as send:
        monitors = [asyncio.create_task(run.tick()), asyncio.create_task(run.heartbeat())]
        await (run.closed_loop(send) if load.rate is None else run.open_loop(send))
        run.over = True
        await asyncio.gather(*monitors)
    sink(run.completed, time.monotonic())
    return GeneratorHealth(tuple(run.pauses), run.overrun, run.failure)


def run_event_loop(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on an event loop that keeps time.

    asyncio's default on Linux, epoll, rounds waits up to whole milliseconds; select does not. What
    is alive already is exempt from garbage collection, whose pauses grow with the heap.
    """
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    gc.collect()
    gc.freeze()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        gc.unfreeze()
        # Interrupted: let what is still going on give back its memory and connections.
        if pending := asyncio.all_tasks(loop):
            for task in pending:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _Run:
    def __init__(self, load: Load, start: float, sink: Sink) -> None:
        self.load = load
        self.start = start
        self.sink = sink
        self.completed: list[Record] = []
        self.pauses: list[float] = []
        self.over = False
        self.overrun = False
        self.failure: str | None = None

    async def closed_loop(self, send: Send) -> None:
        async def caller() -> None:
            await asyncio.sleep(self.start - time.monotonic())
            while not self.over:
                sent = time.monotonic()
                done, failure = await send()
                self._complete(sent, sent, done, failure)
                if failure:
                    await asyncio.sleep(HEARTBEAT_S)  # not a storm of failures

        await asyncio.gather(*(caller() for _ in range(self.load.concurrency)))

    async def open_loop(self, send: Send) -> None:
        outstanding: set[asyncio.Task[None]] = set()

        async def request(intended: float) -> None:
            sent = time.monotonic()
            self._complete(intended, sent, *await send())

        for intended in self._schedule():
            # A long gap is waited for in pieces: the load may end within it.
            while not self.over and (gap := intended - time.monotonic()) > 2 * TICK_S:
                await asyncio.sleep(min(gap - TICK_S, TICK_S))
            # Even when late, let answers be read between two sends.
            if not self.over:
                await asyncio.sleep(max(0.0, intended - time.monotonic()))
            if self.over:
                break
            if len(outstanding) >= MAX_OUTSTANDING:
                self.overrun = self.over = True
                for task in outstanding:
                    task.cancel()
                break
            task = asyncio.create_task(request(intended))
            outstanding.add(task)
            task.add_done_callback(outstanding.discard)
        await asyncio.gather(*outstanding, return_exceptions=self.overrun)

    def _complete(self, intended: float, sent: float, done: float, failure: str | None) -> None:
        self.completed.append(Record(intended, sent, done, failure is None))
        self.failure = self.failure or failure

    def _schedule(self) -> Iterator[float]:
        return (self.start + offset for offset in self.load.offsets())

    async def tick(self) -> None:
        try:
            while not self.over:
                await asyncio.sleep(TICK_S)
                completed, self.completed = self.completed, []
                self.over |= self.sink(completed, time.monotonic())
        finally:
            self.over = True  # also where nobody takes the records any more

    async def heartbeat(self) -> None:
        while not self.over:
            before = time.monotonic()
            await asyncio.sleep(HEARTBEAT_S)
            self.pauses.append(time.monotonic() - before - HEARTBEAT_S)
