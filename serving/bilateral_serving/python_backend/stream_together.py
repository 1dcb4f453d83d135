"""Continuous batching: streams join between two words, advance together, and leave when they end.

It lies beside `stream.py`, which gives it requests, and needs neither Triton nor the runtime.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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

    Texts that join are read together, in a run of their own, as many as have the tokens of one
    window: who runs waits no longer than for one long prompt, however many join. What is wrong
    with one stream ends that stream only; a run that fails ends those in it.

    Args:
        batch: The rows of the running streams.
        limit: How many run at once; further ones wait, in their order.
        window: How many tokens are read at most between two words, unless one text has more.
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
        window: int,
        begin: Callable[[S], Generation | None],
        is_left: Callable[[S], bool],
        word: Callable[[S, Word], None],
        end: Callable[[S, Exception | None], None],
    ) -> None:
        self._batch, self._limit, self._window = batch, limit, window
        self._begin, self._is_left, self._word, self._end = begin, is_left, word, end
        self._waiting: queue.SimpleQueue[S] = queue.SimpleQueue()
        self._begun: deque[Running[S]] = deque()
        self._running: list[Running[S]] = []

    def put(self, stream: S) -> None:
        """Add a stream, from any thread."""
        self._waiting.put(stream)

    def advance(self) -> None:
        """Let streams join, and each that runs have one more word; waits while there is none."""
        self._take()
        if self._begun:
            self._join()
        self._leave()
        if self._running:
            self._read()

    def _take(self) -> None:
        """Begin waiting streams, as many as may run."""
        idle = not (self._running or self._begun)
        while len(self._running) + len(self._begun) < self._limit:
            if self._waiting.empty() and not idle:
                return
            stream, idle = self._waiting.get(), False
            try:
                generation = self._begin(stream)
            except Exception as error:
                self._end(stream, error)
                continue
            if generation is not None:
                self._begun.append(Running(stream, generation))

    def _join(self) -> None:
        joining: list[Running[S]] = []
        longest = 0
        while self._begun:
            longest = max(longest, min(len(self._begun[0].generation.unread), self._window))
            if joining and longest * (len(joining) + 1) > self._window:
                break
            joining.append(self._begun.popleft())
        try:
            after = self._batch.join([one.generation.unread for one in joining])
        except Exception as error:
            for one in joining:
                self._end(one.stream, error)
        else:
            self._running += joining
            self._draw(after, joining)

    def _read(self) -> None:
        try:
            after = self._batch.read([one.generation.unread[-1] for one in self._running])
        except Exception as error:
            for one in self._running:
                one.failure = error
        else:
            self._draw(after, self._running)

    def _draw(self, after: Iterable[Array | None], running: Sequence[Running[S]]) -> None:
        for probabilities, one in zip(after, running, strict=True):
            if probabilities is None:
                continue
            try:
                self._word(one.stream, one.generation.draw(probabilities))
            except Exception as error:
                one.failure = error

    def _leave(self) -> None:
        stays = [self._stays(one) for one in self._running]
        if all(stays):
            return
        try:
            self._batch.keep(stays)
        except Exception as error:  # memory: then nobody stays
            for one in self._running:
                one.failure = one.failure or error
            stays = [False] * len(stays)
            self._batch.keep(stays)
        for one, stay in zip(self._running, stays, strict=True):
            if not stay:
                self._end(one.stream, one.failure)
        self._running = [one for one, stay in zip(self._running, stays, strict=True) if stay]

    def _stays(self, one: Running[S]) -> bool:
        if one.failure or one.generation.ended:
            return False
        try:
            return not self._is_left(one.stream)
        except Exception as error:  # else it would end the thread of all streams
            one.failure = error
            return False
