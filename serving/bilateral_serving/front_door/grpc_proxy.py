"""gRPC callers on one side, Triton on the other: what a caller does never cancels a call there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio

from bilateral_serving import access
from bilateral_serving.access import METADATA_KEY
from bilateral_serving.front_door import requests
from bilateral_serving.front_door.calls import AWAY, FULL, Calls
from bilateral_serving.front_door.fair_queue import FairQueue, FullError
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.front_door.stream import Stream
from bilateral_serving.front_door.upstream import AwayError, Upstream, has_broken, was_not_sent

Metadata = Iterable[tuple[str, "str | bytes"]]
Code = grpc.StatusCode

FULL_OF_STREAMS = "too many streams of this connection are open already"
CLOSED = "{} needs the token of the server's start, in the metadata " + METADATA_KEY


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Makes a call to Triton for each call of a caller.

    Args:
        options: The limits and the token.
        upstream: The connection to Triton.
        calls: The calls under way.
    """

    def __init__(self, options: FrontDoorOptions, upstream: Upstream, calls: Calls) -> None:
        self._token, self._upstream, self._calls = options.token, upstream, calls
        self._streams = FairQueue(options.streams, options.streams_per_caller, 0, 0)
        self._open_stream = upstream.channel.stream_stream(requests.STREAM)
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
        return access.is_token(shown, self._token)

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
                try:
                    answer: bytes = await self._calls.make(
                        caller, lambda: _send(send, request, metadata)
                    )
                    return answer
                except grpc.aio.AioRpcError as error:
                    sent = not was_not_sent(error)
                    if not held or (sent and not (again and has_broken(error))):
                        await _abort(context, error.code(), error.details() or "")
                    # Once: a request that ended the server must not end the next one.
                    again = again and not sent
                await self._upstream.wait_until_it_answers(patience)
            except AwayError:
                await _abort(context, Code.UNAVAILABLE, AWAY)
            except FullError:
                await _abort(context, Code.RESOURCE_EXHAUSTED, FULL)

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

    async def _stream(self, _requests: Any, context: Any) -> None:
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

        stream = Stream(
            lambda: self._open_stream(metadata=metadata), context, self._calls.start, check
        )
        stream.answers.add_done_callback(lambda _: self._streams.leave(caller))
        try:
            await stream.run()
        except grpc.aio.AioRpcError as error:
            await _abort(context, error.code(), error.details() or "")
        except ValueError as error:
            await _abort(context, Code.INVALID_ARGUMENT, str(error))


async def _send(send: Any, request: bytes, metadata: Metadata) -> bytes:
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
