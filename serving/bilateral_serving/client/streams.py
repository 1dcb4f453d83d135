"""Reading a stream of words over gRPC, for the synchronous and for the asyncio client.

A stream that is left early is ended by a message to the model, never cancelled: Triton (2.51) can
die of a cancelled stream. So that neither an interrupt nor the end of an event loop cancels one
either, each stream has a thread of its own, which reads it to its end whatever becomes of the
caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeAlias

import grpc
from tritonclient.grpc import InferResult, service_pb2_grpc
from tritonclient.grpc._utils import get_error_grpc
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_serving import language
from bilateral_serving.client import connection, errors, requests, tracing
from bilateral_serving.client.call_metadata import pairs
from bilateral_serving.client.deadline import Deadline
from bilateral_serving.client.endpoints import StreamPlace
from bilateral_serving.client.grpc_connection import channel
from bilateral_serving.language import Sampling, Word

logger = logging.getLogger(__name__)

# None: the stream has ended.
Answer: TypeAlias = "InferResult | InferenceServerException | None"

# How long a model may take to end a stream that was left; it does so after its next word.
_PATIENCE_S = 5.0


def read(
    place: StreamPlace,
    model: str,
    text: str,
    options: Sampling,
    version: int | None,
    deadline: Deadline,
) -> Generator[Word, None, None]:
    """Ask a model for words and yield each as it comes; closing the iterator stops the model.

    Raises:
        UserError: The server's error, or that the deadline has passed.
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    exchange = _Exchange(place, model, text, options, version, deadline, answers.put)
    try:
        while True:
            exchange.check_process()
            try:
                answer = answers.get(timeout=deadline.left_s)
            except queue.Empty:
                answer = _late()
            if answer is None:
                return
            yield from exchange.words(answer)
    finally:
        exchange.leave()
        exchange.join()


async def read_async(
    place: StreamPlace,
    model: str,
    text: str,
    options: Sampling,
    version: int | None,
    deadline: Deadline,
) -> AsyncGenerator[Word, None]:
    """Yield the same for asyncio."""
    answers: asyncio.Queue[Answer] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(answer: Answer) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(answers.put_nowait, answer)

    exchange = _Exchange(place, model, text, options, version, deadline, deliver)
    # Timers, not asyncio.wait_for, which can swallow a cancellation (before Python 3.12).
    late = loop.call_later(deadline.left_s, answers.put_nowait, _late())
    ended = False
    try:
        while not ended:
            answer = await answers.get()
            if answer is None:
                ended = True
            else:
                for word in exchange.words(answer):
                    yield word
    finally:
        late.cancel()
        exchange.leave()
        drop = loop.call_later(_PATIENCE_S, exchange.drop)
        while not ended:
            ended = await answers.get() is None
        drop.cancel()


class _Exchange:
    """One request and its answers.

    Args:
        place: The server's address, and how it is reached.
        model: Its name.
        text: The prompt.
        options: How words are drawn.
        version: The model's version.
        deadline: When the last answer must be there.
        deliver: Takes each answer, in the exchange's own thread.
    """

    def __init__(
        self,
        place: StreamPlace,
        model: str,
        text: str,
        options: Sampling,
        version: int | None,
        deadline: Deadline,
        deliver: Callable[[Answer], None],
    ) -> None:
        self._place, self._url, self._deadline, self._deliver = place, place.url, deadline, deliver
        self._what = requests.named(model, version)
        self._request = language.to_request(
            model, requests.version_text(version), uuid.uuid4().hex, text, options
        )
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outgoing.put(self._request)
        self._process = connection.process()
        access = place.access
        metadata = access.credentials.metadata + pairs(access.metadata)
        self._channel = channel(place.url, access.credentials, access.options)
        self._under_way = connection.begin()
        if (span := tracing.begin("ModelStreamInfer", place.url)) is not None:
            metadata += span[0]
            self._under_way.add_done_callback(span[1])
        # gRPC's own deadline cancels, too: it is the last resort.
        self._call = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelStreamInfer(
            iter(self._outgoing.get, None),
            timeout=deadline.left_s + _PATIENCE_S,
            metadata=metadata,
        )
        place.began()
        self._thread = threading.Thread(target=self._receive, name="stream of words")
        self._thread.start()

    def words(self, answer: InferResult | InferenceServerException) -> list[Word]:
        """Return the words of an answer.

        Raises:
            UserError: It is an error.
        """
        if isinstance(answer, InferenceServerException):
            raise errors.explain(answer, self._url, self._deadline, self._what) from answer
        return language.words(self._what, answer)

    def check_process(self) -> None:
        """Refuse to go on in a forked child, where nothing reads the stream.

        Raises:
            UserError: This is not the process that began it.
        """
        if connection.process() != self._process:
            raise UserError(
                f"{self._what}: the stream of words belongs to the process that this one was "
                "forked from",
                "Ask for another one here.",
            )

    def leave(self) -> None:
        """Ask the model to end the stream; nothing is sent if it has ended."""
        self._outgoing.put(language.to_leave(self._request))
        self._outgoing.put(None)

    def join(self) -> None:
        """Wait until the stream has ended, or drop it."""
        self._thread.join(_PATIENCE_S)
        self.drop()

    def drop(self) -> None:
        """Cancel the stream, unless it has ended."""
        if not self._thread.is_alive():
            return
        logger.warning(
            "%s: %s did not end a stream within %g s; it is cancelled",
            self._what,
            self._url,
            _PATIENCE_S,
        )
        self._call.cancel()

    def _receive(self) -> None:
        error = None
        try:
            with self._channel:
                for response in self._call:
                    self._take(response)
        except grpc.RpcError as broken:
            error = get_error_grpc(broken)
            self._deliver(error)
        finally:
            self._place.ended(error)
            self._outgoing.put(None)
            self._under_way.set_result(None)
            self._deliver(None)

    def _take(self, response: Any) -> None:
        result = InferResult(response.infer_response)
        failed = bool(response.error_message)
        if failed or language.is_final(result):
            self._outgoing.put(None)  # this side of the stream closes, and then the server's
        self._deliver(InferenceServerException(response.error_message) if failed else result)


def _late() -> InferenceServerException:
    return InferenceServerException("", status="StatusCode.DEADLINE_EXCEEDED")
