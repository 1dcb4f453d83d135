"""The gRPC proxy before Triton, where nothing that a caller does cancels a call to Triton."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from bilateral_serving import access
from bilateral_serving.access import METADATA_KEY
from bilateral_serving.credentials import BEARER
from bilateral_serving.front_door import requests
from bilateral_serving.front_door.calls import AWAY, FULL, BrokenError, Calls
from bilateral_serving.front_door.fair_queue import FairQueue, FullError
from bilateral_serving.front_door.guard import Guard, RefusedError
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.front_door.stream import Stream
from bilateral_serving.front_door.upstream import AwayError, Upstream
from bilateral_serving.tokens import Caller
from bilateral_serving.transport import has_broken, was_not_sent

Metadata = Iterable[tuple[str, "str | bytes"]]
Answer = TypeVar("Answer")
Code = grpc.StatusCode

FULL_OF_STREAMS = "too many streams of this connection are open already"
CLOSED = "{} needs the token of the server's start, in the metadata " + METADATA_KEY


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Makes a call to Triton for each call of a caller.

    Args:
        options: The limits and the token.
        upstream: The connection to Triton.
        calls: The calls under way.
        guard: Who may call.
    """

    def __init__(
        self, options: FrontDoorOptions, upstream: Upstream, calls: Calls, guard: Guard
    ) -> None:
        self._guard = guard
        self._token, self._upstream, self._calls = options.token, upstream, calls
        self._streams = FairQueue(options.streams, options.streams_per_caller, 0, 0)
        self._open_stream = upstream.channel.stream_stream(requests.STREAM)
        self._handlers = {
            method: grpc.unary_unary_rpc_method_handler(self._unary(method))
            for method in requests.OPEN
        }
        self._handlers[requests.STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the handler of a method; what is not open to all is closed without the token."""
        handler = self._handlers.get(call.method)
        if handler is not None or call.method == requests.WATCH:
            return handler
        if self.may_manage(call.invocation_metadata):
            return grpc.unary_unary_rpc_method_handler(self._unary(call.method))
        return grpc.unary_unary_rpc_method_handler(_refusal(call.method.rpartition("/")[2]))

    def may_manage(self, metadata: Metadata) -> bool:
        """Return whether a call shows the token."""
        shown = dict(metadata).get(METADATA_KEY, b"")
        return access.is_token(shown, self._token)

    def _unary(self, method: str) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
        send = self._upstream.channel.unary_unary(method)
        repeatable, held = method in requests.OPEN, method not in requests.HEALTH

        async def call(request: bytes, context: Any) -> bytes:
            metadata, again = _passed_on(context.invocation_metadata()), repeatable
            owner = None if method in requests.HEALTH else self._caller(context)
            if method == requests.INFER:
                self._guard.spend(owner, len(request))
                again = not requests.is_of_sequence(await self._check(request, context))
            answer: bytes = await self._calls.make(
                context.peer(),
                lambda: _send(send, request, metadata),
                held=held,
                repeatable=again,
            )
            return answer

        async def handle(request: bytes, context: Any) -> bytes:
            return await _or_abort(context, call(request, context), FULL)

        return handle

    def _caller(self, context: Any) -> Caller | None:
        """Return who calls; whoever may manage the server needs no other token.

        Raises:
            RefusedError: It shows no token of this server.
        """
        metadata = context.invocation_metadata()
        if self.may_manage(metadata):
            return None
        return self._guard.caller(str(dict(metadata).get(BEARER, "")))

    async def _check(self, request: bytes, context: Any) -> bytes:
        """Return an inference request's envelope; the call ends here if it is not allowed.

        Raises:
            ValueError: It is not an inference request.
        """
        around = requests.envelope(request)
        closed = requests.refers_to_shared_memory(around)
        if closed and not self.may_manage(context.invocation_metadata()):
            await _abort(context, Code.PERMISSION_DENIED, CLOSED.format("shared memory"))
        return around

    async def _stream(self, _requests: Any, context: Any) -> None:
        await _or_abort(context, self._pass_stream(context), FULL_OF_STREAMS)

    async def _pass_stream(self, context: Any) -> None:
        caller, metadata = context.peer(), _passed_on(context.invocation_metadata())
        owner = self._caller(context)
        await self._upstream.wait_until_connected(self._upstream.patience())
        await self._streams.enter(caller)

        async def check(request: bytes) -> None:
            self._guard.spend(owner, len(request))
            await self._check(request, context)

        stream = Stream(
            lambda: self._open_stream(metadata=metadata), context, self._calls.start, check
        )
        stream.answers.add_done_callback(lambda _: self._streams.leave(caller))
        await stream.run()


async def _send(send: Any, request: bytes, metadata: Metadata) -> bytes:
    try:
        answer: bytes = await send(request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        how = error.code().name, error.details() or ""
        unsent = was_not_sent(*how)
        if unsent or has_broken(*how):
            raise BrokenError(error, sent=not unsent) from error
        raise
    return answer


async def _or_abort(context: Any, answer: Awaitable[Answer], full: str) -> Answer:
    """Return what is awaited; an error ends the caller's call with the status that says it."""
    try:
        return await answer
    except AwayError:
        await _abort(context, Code.UNAVAILABLE, AWAY)
    except FullError:
        await _abort(context, Code.RESOURCE_EXHAUSTED, full)
    except grpc.aio.AioRpcError as error:
        await _abort(context, error.code(), error.details() or "")
    except RefusedError as error:
        code = Code.UNAUTHENTICATED if error.is_unknown else Code.RESOURCE_EXHAUSTED
        await _abort(context, code, str(error))
    except ValueError as error:
        await _abort(context, Code.INVALID_ARGUMENT, str(error))


async def _abort(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("unreachable")


def _refusal(name: str) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
    async def refuse(_request: bytes, context: Any) -> bytes:
        await _abort(context, Code.PERMISSION_DENIED, CLOSED.format(name))

    return refuse


def _passed_on(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """Return a caller's metadata without gRPC's own and its tokens."""
    return tuple(item for item in metadata if item[0] not in ("user-agent", METADATA_KEY, BEARER))
