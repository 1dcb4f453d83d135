"""One stream of requests and answers between a caller and Triton."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from bilateral_serving import language
from bilateral_serving.front_door import requests

# Of one stream, the requests for words whose answers may still come: the last so many.
_REMEMBERED = 1024
# What may wait for a slow reader: bytes of answers, or so many answers, however large they are.
_UNREAD_BYTES, _FEW = 256 << 10, 16

SLOW = "the answers of this stream are read too slowly: read faster, or ask for fewer"

Start = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]


class SlowReaderError(Exception):
    """More answers of a stream wait for its caller than may wait."""


class Stream:
    """Passes messages on, both ways.

    Triton's side is never cancelled. When the caller goes, it is closed for requests, the models
    are told to end the answers they are writing, and what still comes is read and dropped.

    A model knows a request for words by its id. Callers choose ids as they like, two of them the
    same: the model gets one of ours, so that nobody ends the words of another.

    A request is read when the one before it was handed on. Answers are read as they come, because
    Triton 2.51 keeps without bound what is not read. What waits for a slow reader is bounded here:
    beyond that Triton's side is ended as if the caller had gone, and it gets what waits, and then
    the reason.

    Args:
        open_stream: Opens a stream to Triton.
        context: The caller's.
        start: Starts a task that nothing cancels.
        check: Checks one request and returns it as it is to be sent.
    """

    def __init__(
        self,
        open_stream: Callable[[], Any],
        context: Any,
        start: Start,
        check: Callable[[bytes], Awaitable[bytes]],
    ) -> None:
        self._open_stream, self._context = open_stream, context
        self._start, self._check = start, check
        self._call = open_stream()
        self._has_caller = True
        self._words: dict[str, pb.ModelInferRequest] = {}  # by our id, as it was sent on
        self._ids: dict[str, str] = {}  # the caller's, by ours
        self._writing: asyncio.Task[Any] | None = None
        self._unread: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: no more will come
        self._unread_bytes = 0
        self._full: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_left = False
        self.answers = start(self._pass_answers())
        """Ends when Triton has ended the stream."""

    async def run(self) -> None:
        """Pass messages on until Triton has ended the stream, or the caller has gone.

        Raises:
            grpc.aio.AioRpcError: Triton's error.
            SlowReaderError: Too much waits for the caller.
            asyncio.CancelledError: The caller has gone.
        """
        incoming = asyncio.create_task(self._pass_requests())
        outgoing = self._start(self._hand_on())
        first = asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait((incoming, outgoing, self._full), return_when=first)
            if incoming.done():
                incoming.result()
            await asyncio.wait((outgoing, self._full), return_when=first)
            if self._full.done():
                self._end(incoming)
                await asyncio.shield(outgoing)
                raise SlowReaderError
            await asyncio.shield(self.answers)
        finally:
            self._has_caller = False
            while not self._unread.empty():
                self._unread.get_nowait()
            self._unread.put_nowait(None)
            self._end(incoming)

    def _end(self, incoming: asyncio.Task[None]) -> None:
        """End Triton's side, whose answers are dropped from now on; the second time do nothing."""
        incoming.cancel()
        if not self._is_left and not self.answers.done():
            self._is_left = True
            self._start(self._leave())

    async def _pass_requests(self) -> None:
        while (request := await self._context.read()) is not grpc.aio.EOF:
            request = await self._check(request)
            words = requests.words_request(request)
            if words is not None:
                request = self._renamed(words)
            await self._write(self._call.write(request))
        await self._write(self._call.done_writing())

    def _renamed(self, request: pb.ModelInferRequest) -> bytes:
        if "leave" in request.parameters:
            left = request.parameters["leave"].string_param
            ours = next((ours for ours, theirs in self._ids.items() if theirs == left), "")
            request.parameters["leave"].string_param = ours
        else:
            theirs, request.id = request.id, uuid.uuid4().hex
            self._ids[request.id], self._words[request.id] = theirs, request
            if len(self._ids) > _REMEMBERED:
                self._forget(next(iter(self._ids)))
        renamed: bytes = request.SerializeToString()
        return renamed

    def _named_back(self, answer: bytes) -> bytes:
        parsed = pb.ModelStreamInferResponse.FromString(answer)
        ours = parsed.infer_response.id
        if ours not in self._ids:
            return answer
        parsed.infer_response.id = self._ids[ours]
        ended = parsed.infer_response.parameters.get("triton_final_response")
        if parsed.error_message or (ended is not None and ended.bool_param):
            self._forget(ours)
        named: bytes = parsed.SerializeToString()
        return named

    def _forget(self, ours: str) -> None:
        del self._ids[ours], self._words[ours]

    async def _write(self, writing: Coroutine[Any, Any, Any]) -> None:
        # gRPC cancels a call whose writer is cancelled: it is another task.
        self._writing = self._start(_unless_ended(writing))
        await asyncio.shield(self._writing)

    async def _pass_answers(self) -> None:
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                if self._ids:
                    answer = self._named_back(answer)
                if self._has_caller and not self._full.done():
                    self._keep(answer)
        finally:
            self._unread.put_nowait(None)

    def _keep(self, answer: bytes) -> None:
        """Keep an answer until it is handed on."""
        self._unread.put_nowait(answer)
        self._unread_bytes += len(answer)
        if self._unread_bytes > _UNREAD_BYTES and self._unread.qsize() > _FEW:
            self._full.set_result(None)
            self._unread.put_nowait(None)

    async def _hand_on(self) -> None:
        """Write answers to the caller until no more will come, or it has gone."""
        while (answer := await self._unread.get()) is not None:
            if self._has_caller:
                try:
                    await self._context.write(answer)
                except Exception:  # gRPC has several; each means that nobody is there
                    self._has_caller = False
            self._unread_bytes -= len(answer)

    async def _leave(self) -> None:
        """End the stream of a caller that has gone, or reads too slowly."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        await _unless_ended(self._call.done_writing())
        if not self._words:
            return
        # The stream may have been closed for requests before its caller went: by one of its own.
        messenger = self._open_stream()
        for request in list(self._words.values()):
            leaving = language.to_leave(request).SerializeToString()
            await _unless_ended(messenger.write(leaving))
        await _unless_ended(messenger.done_writing())
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await messenger.read() is not grpc.aio.EOF:
                pass


async def _unless_ended(writing: Coroutine[Any, Any, Any]) -> None:
    """Write to Triton; if it has ended the stream, its own status says why."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await writing
