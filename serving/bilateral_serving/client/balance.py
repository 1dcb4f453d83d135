"""Which of several servers a call goes to: the least loaded of those that answer.

A server that cannot be reached, or is silent three times in a row, is ejected. From then on it
gets no calls, unless all are ejected, but a probe from time to time; only a probe that succeeds
brings it back. Each ejection without a good answer in between doubles the pause between its probes.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

FIRST_PROBE_S, LAST_PROBE_S = 0.1, 2.0
_SILENT_TIMES = 3


class Outcome(enum.Enum):
    """What a call says of the server that it went to."""

    ANSWERED = enum.auto()  # refusals too
    AWAY = enum.auto()  # there was no connection, or it broke
    SILENT = enum.auto()  # no answer within the deadline, or the model's process is dead


@dataclass
class _Server:
    in_flight: int = 0
    chosen: int = 0  # when it was chosen last, counted in choices
    silent: int = 0
    ejected: bool = False
    probing: bool = False
    pause_s: float = FIRST_PROBE_S
    probe_at: float = 0.0


class Balancer:
    """Chooses among servers, which are numbers from 0.

    Args:
        count: How many servers there are.
        clock: Seconds.
        chance: Numbers from 0 to 1, which keep the probes of many clients apart.
    """

    def __init__(
        self,
        count: int,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._servers = [_Server() for _ in range(count)]
        self._clock, self._chance = clock, chance
        self._choices = 0
        self._lock = threading.Lock()

    def choose(self, tried: Collection[int] = ()) -> int:
        """Return the least loaded server, in turn among equals.

        One that is not ejected comes before one that is, and of those one not in `tried`.
        """
        if len(self._servers) == 1:
            return 0
        with self._lock:
            self._choices += 1
            index = min(
                range(len(self._servers)),
                key=lambda i: (
                    self._servers[i].ejected,
                    i in tried,
                    self._servers[i].in_flight,
                    self._servers[i].chosen,
                ),
            )
            self._servers[index].chosen = self._choices
            return index

    def has_other(self, tried: Collection[int]) -> bool:
        """Return whether there is a server that is neither ejected nor in `tried`."""
        return any(
            not server.ejected and index not in tried for index, server in enumerate(self._servers)
        )

    def began(self, index: int) -> None:
        """Count a call that is made to a server."""
        with self._lock:
            self._servers[index].in_flight += 1

    def ended(self, index: int) -> None:
        """Count the end of a call, whenever that is."""
        with self._lock:
            self._servers[index].in_flight -= 1

    def learn(self, index: int, outcome: Outcome) -> None:
        """Take note of what a call says of a server."""
        server = self._servers[index]
        usual = not server.silent and server.pause_s == FIRST_PROBE_S
        if len(self._servers) == 1 or (outcome is Outcome.ANSWERED and usual):
            return
        with self._lock:
            if outcome is Outcome.ANSWERED:
                server.silent = 0
                if not server.ejected:
                    server.pause_s = FIRST_PROBE_S
                return
            server.silent += outcome is Outcome.SILENT
            if not server.ejected and (outcome is Outcome.AWAY or server.silent >= _SILENT_TIMES):
                server.ejected = True
                self._plan_probe(server)

    def probe_due(self) -> int | None:
        """Return an ejected server to be probed now, whose `probed` is then to be called."""
        if not any(server.ejected for server in self._servers):
            return None
        with self._lock:
            now = self._clock()
            for index, server in enumerate(self._servers):
                if server.ejected and not server.probing and now >= server.probe_at:
                    server.probing = True
                    return index
        return None

    def probed(self, index: int, well: bool) -> None:
        """Bring a server back whose probe went well, or plan the next probe."""
        with self._lock:
            server = self._servers[index]
            server.probing = False
            if well:
                server.ejected, server.silent = False, 0
            else:
                self._plan_probe(server)

    def _plan_probe(self, server: _Server) -> None:
        server.probe_at = self._clock() + server.pause_s * (0.5 + 0.5 * self._chance())
        server.pause_s = min(LAST_PROBE_S, 2.0 * server.pause_s)
