"""gRPC callers on one side, Triton on the other: what a caller does never cancels a call there."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio

from bilateral_serving.access import METADATA_KEY
from bilateral_serving.front_door import requests
from bilateral_serving.front_door.fair_queue import FairQueue, FullError
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.front_door.stream import Stream
from bilateral_serving.front_door.upstream import AwayError, Upstream, has_broken, was_not_sent

logger = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, "str | bytes"]]
Code = grpc.StatusCode

AWAY = "tritonserver is away: it is being restarted, or has ended"
FULL = "too many requests of this connection wait already: send fewer at once"
FULL_OF_STREAMS = "too many streams of this connection are open already"
CLOSED = "{} needs the token of the server's start, in the metadata " + METADATA_KEY


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Makes a call to Triton for each call of a caller.

    Args:
        options: The limits and the token.
        upstream: The connection to Triton.
    """

    def __init__(self, options: FrontDoorOptions, upstream: Upstream) -> None:
        self._token = options.token.encode()
        self._upstream = upstream
        self._requests = FairQueue(
            options.requests,
            options.requests_per_caller,
            options.waiting_per_caller,
            options.waiting,
        )
        self._streams = FairQueue(options.streams, options.streams_per_caller, 0, 0)
        self._open_stream = upstream.channel.stream_stream(requests.STREAM)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._handlers = {
            method: grpc.unary_unary_rpc_method_handler(self._unary(method))
            for method in requests.OPEN
        }
        self._handlers[requests.STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; what is not open to all is closed without the token."""
        handler = self._handlers.get(call.method)
        if handler is not None or call.method == requests.WATCH:
            return handler
        if self.may_manage(call.invocation_metadata):
            return grpc.unary_unary_rpc_method_handler(self._unary(call.method))
        return grpc.unary_unary_rpc_method_handler(_refusal(call.method.rpartition("/")[2]))

    def may_manage(self, metadata: Metadata) -> bool:
        """Whether a call shows the token."""
        shown = dict(metadata).get(METADATA_KEY, b"")
        shown = shown.encode() if isinstance(shown, str) else shown
        return hmac.compare_digest(shown, self._token)

    async def drain(self, seconds: float) -> None:
        """Wait for what is under way with Triton, whether its callers are still there or not."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _unary(self, method: str) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
        send = self._upstream.channel.unary_unary(method)
        repeatable, held = method in requests.OPEN, method not in requests.HEALTH

        async def call(request: bytes, context: Any) -> bytes:
            again = repeatable
            if method == requests.INFER:
                again = not requests.is_of_sequence(await self._check(request, context))
            return await self._call(send, request, context, again, held)

        return call

    async def _call(
        self, send: Any, request: bytes, context: Any, again: bool, held: bool
    ) -> bytes:
        """Make one call; a caller that leaves before it is made ends it, later not any more."""
        caller, metadata = context.peer(), _passed_on(context.invocation_metadata())
        patience = self._upstream.patience()
        while True:
            try:
                if held:
                    await self._upstream.wait_until_connected(patience)
                await self._requests.enter(caller)
                asking = self._start(send_alone(send, request, metadata))
                asking.add_done_callback(lambda _: self._requests.leave(caller))
                answer: bytes = await asyncio.shield(asking)
                return answer
            except AwayError:
                await _abort(context, Code.UNAVAILABLE, AWAY)
            except FullError:
                await _abort(context, Code.RESOURCE_EXHAUSTED, FULL)
            except grpc.aio.AioRpcError as error:
                if held and was_not_sent(error):
                    continue
                if again and has_broken(error):
                    # Once: a request that ended the server must not end the next one, and so on.
                    again = False
                    continue
                await _abort(context, error.code(), error.details() or "")

    async def _check(self, request: bytes, context: Any) -> bytes:
        """An inference request's envelope; the call ends here if it is not allowed."""
        try:
            around = requests.envelope(request)
            closed = requests.refers_to_shared_memory(around)
        except ValueError as error:
            await _abort(context, Code.INVALID_ARGUMENT, str(error))
        if closed and not self.may_manage(context.invocation_metadata()):
            await _abort(context, Code.PERMISSION_DENIED, CLOSED.format("shared memory"))
        return around

    async def _stream(self, context: Any) -> None:
        caller, metadata = context.peer(), _passed_on(context.invocation_metadata())
        try:
            await self._upstream.wait_until_connected(self._upstream.patience())
            await self._streams.enter(caller)
        except AwayError:
            await _abort(context, Code.UNAVAILABLE, AWAY)
        except FullError:
            await _abort(context, Code.RESOURCE_EXHAUSTED, FULL_OF_STREAMS)

        async def check(request: bytes) -> None:
            await self._check(request, context)

        stream = Stream(lambda: self._open_stream(metadata=metadata), context, self._start, check)
        stream.answers.add_done_callback(lambda _: self._streams.leave(caller))
        try:
            await stream.run()
        except grpc.aio.AioRpcError as error:
            await _abort(context, error.code(), error.details() or "")

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run to its end what no caller may cancel."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Else asyncio complains of an error whose caller has gone.
            logger.debug("a call ended with %r", error)


async def send_alone(send: Any, request: bytes, metadata: Metadata) -> bytes:
    """Make a call to Triton, in a task that has nothing else to do."""
    answer: bytes = await send(request, metadata=metadata)
    return answer


async def _abort(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("unreachable")


def _refusal(name: str) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
    async def refuse(_request: bytes, context: Any) -> bytes:
        await _abort(context, Code.PERMISSION_DENIED, CLOSED.format(name))

    return refuse


def _passed_on(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """A caller's metadata without gRPC's own and the token."""
    return tuple(item for item in metadata if item[0] not in ("user-agent", METADATA_KEY))
