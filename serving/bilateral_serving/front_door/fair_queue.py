"""A bounded, fair admission queue for requests."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field


class FullError(Exception):
    """A caller has as many requests waiting as it may have."""


@dataclass
class _Caller:
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class FairQueue:
    """Slots for requests under way, granted to the callers that wait in turn.

    A caller is a connection. However many requests one of them sends, and however few of the
    answers it waits for, it holds at most `per_caller` slots, and each free slot goes to the next
    caller that waits, not to the next request. A caller that holds none gets one at once.

    Args:
        slots: Requests under way at once, of all callers; beyond it each may have one.
        per_caller: Of one caller.
        waiting_per_caller: Requests of one caller that wait for a slot.
        waiting: Of all callers; beyond it each may have one.
    """

    def __init__(self, slots: int, per_caller: int, waiting_per_caller: int, waiting: int) -> None:
        self._slots, self._per_caller = slots, per_caller
        self._waiting_per_caller, self._waiting = waiting_per_caller, waiting
        self._callers: dict[str, _Caller] = {}
        # The callers that wait and may have another slot; the first is next.
        self._turns: OrderedDict[str, None] = OrderedDict()
        self.running = 0
        self.waiting = 0

    async def enter(self, name: str) -> None:
        """Take a slot, waiting for one if there is none; whoever took one gives it back.

        Raises:
            FullError: Too many requests wait already.
        """
        caller = self._callers.setdefault(name, _Caller())
        if not caller.waiting and self._may_run(caller):
            self._grant(caller)
            return
        full = self.waiting >= self._waiting and caller.waiting  # nobody's first is refused
        if full or len(caller.waiting) >= self._waiting_per_caller:
            self._forget(name, caller)
            raise FullError
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        caller.waiting.append(turn)
        self.waiting += 1
        self._give_turns(name)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # granted in this very moment
                self.leave(name)
            elif turn in caller.waiting:
                caller.waiting.remove(turn)
                self.waiting -= 1
                self._forget(name, caller)
            raise

    def leave(self, name: str) -> None:
        """Give a slot back."""
        caller = self._callers[name]
        caller.running -= 1
        self.running -= 1
        self._give_turns(name)
        self._forget(name, caller)

    def _give_turns(self, name: str) -> None:
        """Put `name` in the order of turns if it may have a slot, and hand out the free slots."""
        caller = self._callers[name]
        if caller.waiting and caller.running < self._per_caller:
            self._turns.setdefault(name)
            if not caller.running:
                self._turns.move_to_end(name, last=False)
        while self._turns:
            name = next(iter(self._turns))
            caller = self._callers[name]
            if caller.waiting and not self._may_run(caller):
                return
            del self._turns[name]
            if caller.waiting:
                turn = caller.waiting.popleft()
                self.waiting -= 1
                if not turn.cancelled():
                    turn.set_result(None)
                    self._grant(caller)
            if caller.waiting and caller.running < self._per_caller:
                self._turns[name] = None
            self._forget(name, caller)

    def _may_run(self, caller: _Caller) -> bool:
        # One of each caller always: else those who have all slots decide when others are served.
        room = self.running < self._slots or not caller.running
        return room and caller.running < self._per_caller

    def _grant(self, caller: _Caller) -> None:
        caller.running += 1
        self.running += 1

    def _forget(self, name: str, caller: _Caller) -> None:
        if not caller.running and not caller.waiting and name not in self._turns:
            self._callers.pop(name, None)
