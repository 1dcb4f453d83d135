"""Continuous batching: streams join between two words, advance together, and leave when they end.

It lies beside `stream.py`, which gives it requests, and needs neither Triton nor the runtime.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from bilateral_text import Generation, Word
from stream_batch import Batch

Array = np.ndarray[Any, Any]
S = TypeVar("S")


@dataclass
class Running(Generic[S]):
    """A stream that advances, and why it cannot go on, if it cannot."""

    stream: S
    generation: Generation
    failure: Exception | None = None


class Together(Generic[S]):
    """Advances many streams, one word of each in one run of the model.

    One text is read between two words: who runs waits for one prompt at most, however many join.
    What is wrong with one stream ends that stream only; a run that fails ends those in it.

    Args:
        batch: The rows of the running streams.
        limit: How many run at once; further ones wait, in their order.
        begin: Returns what a stream is to generate, None if it was left while it waited; raises
            what is wrong with the request.
        is_left: Whether nobody wants a stream's further words.
        word: Takes each word of a stream.
        end: Takes the end of a stream that was begun, and why it failed, if it did.
    """

    def __init__(
        self,
        batch: Batch,
        limit: int,
        begin: Callable[[S], Generation | None],
        is_left: Callable[[S], bool],
        word: Callable[[S, Word], None],
        end: Callable[[S, Exception | None], None],
    ) -> None:
        self._batch, self._limit = batch, limit
        self._begin, self._is_left, self._word, self._end = begin, is_left, word, end
        self._waiting: queue.SimpleQueue[S] = queue.SimpleQueue()
        self._running: list[Running[S]] = []

    def put(self, stream: S) -> None:
        """Add a stream, from any thread."""
        self._waiting.put(stream)

    def advance(self) -> None:
        """Let one stream join, and each that runs have one more word; waits while there is none."""
        if not self._running or (len(self._running) < self._limit and not self._waiting.empty()):
            self._join(self._waiting.get())
        self._leave()
        if self._running:
            self._read()

    def _join(self, stream: S) -> None:
        try:
            generation = self._begin(stream)
            if generation is None:
                return
            after = self._batch.join(generation.unread)
        except Exception as error:
            self._end(stream, error)
            return
        self._running.append(Running(stream, generation))
        self._draw([after], self._running[-1:])

    def _read(self) -> None:
        try:
            after = self._batch.read([one.generation.unread[0] for one in self._running])
        except Exception as error:
            for one in self._running:
                one.failure = error
        else:
            self._draw(after, self._running)

    def _draw(self, after: Sequence[Array], running: Sequence[Running[S]]) -> None:
        for probabilities, one in zip(after, running, strict=True):
            try:
                self._word(one.stream, one.generation.draw(probabilities))
            except Exception as error:
                one.failure = error

    def _leave(self) -> None:
        stays = [
            not (one.failure or one.generation.ended or self._is_left(one.stream))
            for one in self._running
        ]
        if all(stays):
            return
        self._batch.keep(stays)
        for one, stay in zip(self._running, stays, strict=True):
            if not stay:
                self._end(one.stream, one.failure)
        self._running = [one for one, stay in zip(self._running, stays, strict=True) if stay]
