"""The gRPC proxy before Triton, where nothing that a caller does cancels a call to Triton."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from bilateral_serving import access
from bilateral_serving.access import METADATA_KEY
from bilateral_serving.credentials import BEARER
from bilateral_serving.front_door import requests
from bilateral_serving.front_door.call_record import CallRecord, Observers
from bilateral_serving.front_door.calls import (
    AWAY,
    DRAINING,
    FULL,
    BrokenError,
    Calls,
    DrainingError,
)
from bilateral_serving.front_door.fair_queue import FairQueue, FullError
from bilateral_serving.front_door.guard import Guard, RefusedError
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.front_door.routed import RoutedCalls
from bilateral_serving.front_door.shadow import Shadow
from bilateral_serving.front_door.stream import SLOW, SlowReaderError, Stream
from bilateral_serving.front_door.upstream import AwayError, Upstream
from bilateral_serving.tokens import Caller
from bilateral_serving.transport import has_broken, was_not_sent

Metadata = Iterable[tuple[str, "str | bytes"]]
Answer = TypeVar("Answer")
Code = grpc.StatusCode

_NOT_PASSED_ON = ("user-agent", METADATA_KEY, BEARER)
_STATUSES = {code.value[0]: code.name for code in Code if code is not Code.OK}

FULL_OF_STREAMS = "too many streams of this connection are open already"
CLOSED = "{} needs the token of the server's start, in the metadata " + METADATA_KEY


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Makes a call to Triton for each call of a caller.

    Args:
        options: The limits and the token.
        upstream: The connection to Triton.
        calls: The calls under way.
        guard: Who may call.
        observers: Who is told of each call.
        shadow: Has answers compared.
    """

    def __init__(
        self,
        options: FrontDoorOptions,
        upstream: Upstream,
        calls: Calls,
        guard: Guard,
        observers: Observers,
        shadow: Shadow,
    ) -> None:
        self._guard, self._observers = guard, observers
        self._token, self._upstream, self._calls = options.token, upstream, calls
        self._routed = RoutedCalls(options.rollouts, shadow, upstream.patience)
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
        if handler is not None and call.method not in requests.HEALTH:
            try:
                self._caller(call.invocation_metadata)
            except RefusedError as error:
                # As a stream, of which nothing is read: a stranger's message fills no memory.
                return grpc.stream_unary_rpc_method_handler(self._stranger(call.method, str(error)))
        if handler is not None or call.method == requests.WATCH:
            return handler
        if self.may_manage(call.invocation_metadata):
            return grpc.unary_unary_rpc_method_handler(self._unary(call.method))
        return grpc.unary_unary_rpc_method_handler(self._refusal(call.method))

    def may_manage(self, metadata: Metadata) -> bool:
        """Return whether a call shows the token."""
        shown = dict(metadata).get(METADATA_KEY, b"")
        return access.is_token(shown, self._token)

    def _unary(self, method: str) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
        send = self._upstream.channel.unary_unary(method)
        repeatable, held = method in requests.OPEN, method not in requests.HEALTH

        async def call(request: bytes, context: Any, record: CallRecord) -> bytes:
            again = repeatable
            self._calls.accept()
            shown = context.invocation_metadata()
            owner = None if method in requests.HEALTH else self._caller(shown)
            record.caller = owner.name if owner else None
            around = request
            if method == requests.INFER:
                self._guard.spend(owner, len(request))
                around = await self._check(request, context)
                again = not requests.is_of_sequence(around)
                if self._observers.any:
                    record.model, record.version, record.id = requests.named(around)
            metadata = _passed_on(shown, record)

            def begin() -> Coroutine[Any, Any, bytes]:
                record.sent_ns = record.sent_ns or time.monotonic_ns()
                return self._routed.send(
                    method, around, request, lambda message: _send(send, message, metadata)
                )

            answer: bytes = await self._calls.make(record.peer, begin, held=held, repeatable=again)
            record.answer_bytes = len(answer)
            if method == requests.INFER and self._observers.any:
                record.version = requests.answering_version(answer) or record.version
            return answer

        async def handle(request: bytes, context: Any) -> bytes:
            if self._calls.draining and method in requests.WHILE_DRAINING:
                return requests.WHILE_DRAINING[method]
            with self._record(method, context, len(request)) as record:
                return await _or_abort(context, call(request, context, record), FULL)

        return handle

    @contextlib.contextmanager
    def _record(self, method: str, context: Any, size: int = 0) -> Iterator[CallRecord]:
        """Yield the record of a call; who observes is told, of questions about health apart."""
        record = CallRecord("grpc", method, context.peer(), request_bytes=size)
        if method in requests.HEALTH:
            yield record
            return
        with self._observers.call(record, dict(context.invocation_metadata())):
            record.status = "OK"
            try:
                yield record
            except Exception:
                record.status = _status_name(context.code())
                raise

    def _refusal(self, method: str) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
        async def refuse(request: bytes, context: Any) -> bytes:
            with self._record(method, context, len(request)):
                text = CLOSED.format(method.rpartition("/")[2])
                await _abort(context, Code.PERMISSION_DENIED, text)

        return refuse

    def _stranger(self, method: str, text: str) -> Callable[[Any, Any], Coroutine[Any, Any, bytes]]:
        async def refuse(_requests: Any, context: Any) -> bytes:
            with self._record(method, context):
                await _abort(context, Code.UNAUTHENTICATED, text)

        return refuse

    def _caller(self, metadata: Metadata) -> Caller | None:
        """Return who calls; whoever may manage the server needs no other token.

        Raises:
            RefusedError: It shows no token of this server.
        """
        if self._guard.is_open or self.may_manage(metadata):
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
        with self._record(requests.STREAM, context) as record:
            await _or_abort(context, self._pass_stream(context, record), FULL_OF_STREAMS)

    async def _pass_stream(self, context: Any, record: CallRecord) -> None:
        self._calls.accept()
        caller, metadata = record.peer, _passed_on(context.invocation_metadata(), record)
        await self._upstream.wait_until_connected(self._upstream.patience())
        await self._streams.enter(caller)

        async def check(request: bytes) -> bytes:
            # Of each request: a stream may outlive its token.
            owner = self._caller(context.invocation_metadata())
            record.caller = owner.name if owner else None
            self._guard.spend(owner, len(request))
            around = await self._check(request, context)
            record.request_bytes += len(request)
            if self._observers.any and not record.model:
                record.model, record.version, record.id = requests.named(around)
            return self._routed.stream_request(around, request)

        stream = Stream(
            lambda: self._open_stream(metadata=metadata), context, self._calls.start, check
        )
        try:
            # Until the status is written too: a caller that reads nothing has it wait.
            await _or_abort(context, stream.run(), FULL_OF_STREAMS)
        finally:
            stream.answers.add_done_callback(lambda _: self._streams.leave(caller))


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
    except DrainingError:
        await _abort(context, Code.UNAVAILABLE, DRAINING)
    except FullError:
        await _abort(context, Code.RESOURCE_EXHAUSTED, full)
    except SlowReaderError:
        await _abort(context, Code.RESOURCE_EXHAUSTED, SLOW)
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


def _passed_on(metadata: Metadata, record: CallRecord) -> tuple[tuple[str, str | bytes], ...]:
    """Return a caller's metadata without gRPC's own and its tokens, and what the record adds."""
    ours = record.passed_on
    kept = (item for item in metadata if item[0] not in _NOT_PASSED_ON and item[0] not in ours)
    return (*kept, *ours.items())


def _status_name(code: Any) -> str:
    """Return the name of a status, which gRPC gives as a number once a call was aborted."""
    name: str = code.name if isinstance(code, Code) else _STATUSES.get(code, "UNKNOWN")
    return name
