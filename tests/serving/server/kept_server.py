"""A server that a module's tests share, started anew if it has ended between two of them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from bilateral_serving.process_status import read_status
from bilateral_serving.server import RunningServer, ServerOptions, running
from bilateral_serving.server.processes.log import LogLine


@dataclass
class KeptServer:
    """What `kept` yields."""

    options: ServerOptions
    _block: contextlib.ExitStack
    _log: deque[str] = field(default_factory=lambda: deque(maxlen=60))
    _running: RunningServer | None = None

    def ready(self) -> RunningServer:
        """Return the server; one that has ended is replaced, and its last words are printed."""
        if self._running is None or read_status(self._running.pid) is None:
            if self._running is not None:
                print("tritonserver has ended:", *self._log, sep="\n")
            self._block.close()
            self._running = self._block.enter_context(running(self.options, on_log=self._note))
        return self._running

    def _note(self, line: LogLine) -> None:
        self._log.append(line.text)


@contextlib.contextmanager
def kept(options: ServerOptions) -> Iterator[KeptServer]:
    """Yield a server for several tests, and stop it at the end of the block.

    tritonserver 2.51 can die of itself. A test that is run again then meets a server that
    lives; one that kills it fails each time.
    """
    with contextlib.ExitStack() as block:
        yield KeptServer(options, block)
