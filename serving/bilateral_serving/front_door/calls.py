"""The calls under way with Triton: begun in fair turns, run to their end whoever leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from bilateral_serving.front_door.fair_queue import FairQueue
from bilateral_serving.front_door.options import FrontDoorOptions

logger = logging.getLogger(__name__)

AWAY = "tritonserver is away: it is being restarted, or has ended"
FULL = "too many requests of this connection wait already: send fewer at once"


class Calls:
    """Starts calls and keeps them.

    Args:
        options: How many.
    """

    def __init__(self, options: FrontDoorOptions) -> None:
        self._queue = FairQueue(
            options.requests,
            options.requests_per_caller,
            options.waiting_per_caller,
            options.waiting,
        )
        self._tasks: set[asyncio.Task[Any]] = set()

    async def make(self, caller: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Make a call when it is the caller's turn, and return its result.

        To be cancelled when the caller leaves: a call that waits for its turn is then not made; one
        that has begun goes on, and counts as the caller's until it ends.

        Raises:
            FullError: Too many wait already.
        """
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
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Looked at: asyncio complains of the error of a task whose caller has gone.
            logger.debug("a call ended with %r", error)
