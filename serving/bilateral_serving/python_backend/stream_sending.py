"""Words on their way to readers: several of a stream in one message where they come fast.

It lies beside `stream.py`, which gives it words, and needs neither Triton nor the runtime. To bring
a message through server, front door and client takes the cores about as long as a small model takes
for one word of eight. So a stream's first word and its end are sent at once, and what is between at
most every `PAUSE_S`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from bilateral_text import Word

S = TypeVar("S")

# Fifty messages a second: twice the pictures of a film, and many times what is read.
PAUSE_S = 0.02


class Sending(Generic[S]):
    """Sends in a thread of its own, while the next words are computed.

    Args:
        send: Takes the next words of a stream.
        finish: Takes the end of one, and why it failed, if it did.
    """

    def __init__(
        self,
        send: Callable[[S, Sequence[Word]], None],
        finish: Callable[[S, Exception | None], None],
    ) -> None:
        self._send, self._finish = send, finish
        self._lock = threading.Lock()
        self._now = threading.Event()
        self._open: dict[S, list[Word]] = {}
        self._ended: dict[S, Exception | None] = {}

    def word(self, stream: S, word: Word) -> None:
        """Add a stream's next word."""
        with self._lock:
            first = stream not in self._open
            self._open.setdefault(stream, []).append(word)
        if first:
            self._now.set()

    def end(self, stream: S, failure: Exception | None) -> None:
        """Add a stream's end; nothing of it may follow."""
        with self._lock:
            self._open.setdefault(stream, [])
            self._ended[stream] = failure
        self._now.set()

    def run(self) -> None:
        """Send for ever."""
        while True:
            self._now.wait(PAUSE_S if self._open else None)
            self._now.clear()
            self.send_all()

    def send_all(self) -> None:
        """Send what is there, in the order in which the streams began."""
        with self._lock:
            waiting, ended, self._ended = self._open, self._ended, {}
            self._open = {stream: [] for stream in waiting if stream not in ended}
        for stream, words in waiting.items():
            # A stream that takes nothing any more must not keep the words of others.
            if words:
                with contextlib.suppress(Exception):
                    self._send(stream, words)
            if stream in ended:
                with contextlib.suppress(Exception):
                    self._finish(stream, ended[stream])
