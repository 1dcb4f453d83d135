"""Calls to Triton: started in fair turns, repeated once, and never cancelled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from bilateral_serving.front_door.fair_queue import FairQueue
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.front_door.upstream import Upstream

_POLL_S = 0.02
_LINGER_S = 0.5
logger = logging.getLogger(__name__)

AWAY = "tritonserver is away: it is being restarted, or has ended"
DRAINING = "the server is ending and takes no new requests: ask another one"
FULL = "too many requests of this connection wait already: send fewer at once"


class DrainingError(Exception):
    """The server is ending, and the request was not taken."""


class BrokenError(Exception):
    """The connection to Triton failed during a call.

    Attributes:
        cause: The transport's own error.
        sent: Whether Triton may have executed the call.
    """

    def __init__(self, cause: Exception, sent: bool) -> None:
        super().__init__(cause)
        self.cause, self.sent = cause, sent


class Calls:
    """Starts calls and keeps them.

    Args:
        options: How many.
        upstream: The connection to Triton, which says whether it is there.
    """

    def __init__(self, options: FrontDoorOptions, upstream: Upstream) -> None:
        self._upstream = upstream
        self._queue = FairQueue(
            options.requests,
            options.requests_per_caller,
            options.waiting_per_caller,
            options.waiting,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._accepted = 0
        self.draining = False
        """Whether the server is ending: new calls are refused, those that were accepted go on."""

    async def make(
        self,
        caller: str,
        call: Callable[[], Coroutine[Any, Any, Any]],
        *,
        held: bool,
        repeatable: bool,
    ) -> Any:
        """Make a call when Triton is there and it is the caller's turn, and return its result.

        To be cancelled when the caller leaves: a call that waits for its turn is then not made; one
        that has begun goes on, and counts as the caller's until it ends.

        Args:
            caller: Whose call it is.
            call: Makes it once; raises `BrokenError` if the connection fails.
            held: Whether it waits for a Triton that is away.
            repeatable: Whether one that Triton may have executed may be sent again.

        Raises:
            AwayError: Triton did not come back in time.
            DrainingError: The server is ending.
            FullError: Too many wait already.
            Exception: The error of a call that broke and is not sent again.
        """
        self.accept()
        self._accepted += 1
        try:
            return await self._make(caller, call, held, repeatable)
        finally:
            self._accepted -= 1

    def accept(self) -> None:
        """Return if a new call may begin.

        Raises:
            DrainingError: The server is ending.
        """
        if self.draining:
            raise DrainingError

    async def _make(
        self,
        caller: str,
        call: Callable[[], Coroutine[Any, Any, Any]],
        held: bool,
        repeatable: bool,
    ) -> Any:
        end = self._upstream.patience()
        while True:
            if held:
                await self._upstream.wait_until_connected(end)
            try:
                return await self._make_once(caller, call)
            except BrokenError as broken:
                if not held or (broken.sent and not repeatable):
                    raise broken.cause from None
                # Once: a request that ended the server must not end the next one.
                repeatable = repeatable and not broken.sent
            await self._upstream.wait_until_it_answers(end)

    async def _make_once(self, caller: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        await self._queue.enter(caller)
        task = self.start(call())
        task.add_done_callback(lambda _: self._queue.leave(caller))
        return await asyncio.shield(task)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run to its end what no caller may cancel."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def drain(self, seconds: float) -> None:
        """Wait for what is under way, whether its callers are still there or not."""
        end = time.monotonic() + seconds
        while (self._accepted or self._tasks) and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        # Whoever asks now is still told that the server ends: gRPC ends a call that comes while
        # its server stops with CANCELLED, which does not say that it may be sent again.
        await asyncio.sleep(min(_LINGER_S, max(0.0, end - time.monotonic())))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Looked at: asyncio complains of the error of a task whose caller has gone.
            logger.debug("a call ended with %r", error)
