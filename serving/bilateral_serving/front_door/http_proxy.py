"""The HTTP proxy before Triton, which passes on only whole, checked requests.

Triton 2.51 dies of deeply nested JSON and of bodies in very many chunks, and it does what any web
page asks that a browser on this machine shows. A request is therefore read whole, checked, and
sent with one length on a connection of its own, which is never aborted. Streams are for gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import socket
import ssl
import time
import zlib
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import web
from tritonclient.grpc import service_pb2 as pb
from yarl import URL

from bilateral_serving import access, http_messages
from bilateral_serving.credentials import BEARER
from bilateral_serving.front_door import json_body, routing
from bilateral_serving.front_door.call_record import CallRecord, Observers
from bilateral_serving.front_door.calls import (
    AWAY,
    DRAINING,
    FULL,
    BrokenError,
    Calls,
    DrainingError,
)
from bilateral_serving.front_door.fair_queue import FullError
from bilateral_serving.front_door.guard import Guard, RefusedError
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.front_door.routing import Router
from bilateral_serving.front_door.shadow import Shadow
from bilateral_serving.front_door.tls import follow
from bilateral_serving.front_door.upstream import AwayError

_MODEL = r"/v2/models/(?!stats\b)[\w.-]+(/versions/\d+)?"
_HEALTH = re.compile(rf"/v2/health/(live|ready)|{_MODEL}/ready", re.ASCII)
_DESCRIPTION = re.compile(rf"/v2/?|{_MODEL}(/config)?", re.ASCII)
_INFER = re.compile(rf"{_MODEL}/infer", re.ASCII)
_NAMED = re.compile(r"/v2/models/([\w.-]+)(?:/versions/(\d+))?", re.ASCII)
_VERSION = re.compile(rb'"model_version"\s*:\s*"(\d+)"')
_GENERATE = re.compile(rf"{_MODEL}/generate", re.ASCII)
_JSON_LENGTH = "Inference-Header-Content-Length"
_PASSED_ON = ("Accept-Encoding", "Content-Type", "traceparent", "tracestate")
_GIVEN_BACK = ("Content-Encoding", "Content-Type", _JSON_LENGTH)
# aiohttp logs a traceback, and the bytes, of each request that is malformed or breaks off.
_silent = logging.getLogger(f"{__name__}.requests")
_silent.disabled = True
# Bodies larger than this are checked in a thread.
_SMALL = 64 << 10
_HEADERS_TIMEOUT_S = 10.0
_BODY_TIMEOUT_S = 30.0
_CONNECTIONS = 256


class _RefusedError(Exception):
    """A request that is answered here, with an error."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def _status(error: _RefusedError | RefusedError) -> HTTPStatus:
    if isinstance(error, _RefusedError):
        return error.status
    return HTTPStatus.UNAUTHORIZED if error.is_unknown else HTTPStatus.TOO_MANY_REQUESTS


class HttpProxy:
    """Answers HTTP requests with Triton's answers.

    Args:
        options: The limits and the token.
        calls: The calls under way.
        guard: Who may call.
        observers: Who is told of each call.
        shadow: Has answers compared.
    """

    def __init__(
        self,
        options: FrontDoorOptions,
        calls: Calls,
        guard: Guard,
        observers: Observers,
        shadow: Shadow,
    ) -> None:
        self._options, self._calls, self._guard = options, calls, guard
        self._observers, self._shadow = observers, shadow
        self._router = Router(options.rollouts)
        self._following: asyncio.Task[None] | None = None
        self._host, _, self._port = (options.http_listen or "").rpartition(":")
        self._server = ConnectionServer(self._answer)

    async def listen(self) -> tuple[web.ServerRunner, str]:
        """Start to answer; returns what is to be cleaned up at the end, and the address.

        Raises:
            OSError: The port is taken, or the address is not this machine's.
        """
        runner = web.ServerRunner(self._server)
        await runner.setup()
        host, files = self._host.strip("[]"), self._options.tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, int(self._port)), family=family)
        context = None if files is None else files.context()
        site = web.SockSite(runner, listening, ssl_context=context)
        await site.start()

        async def renew(context: ssl.SSLContext) -> None:
            nonlocal listening, site
            # The same socket, so that no caller finds it closed.
            old, listening = site, listening.dup()
            site = web.SockSite(runner, listening, ssl_context=context)
            await site.start()
            await old.stop()

        if files is not None:
            self._following = asyncio.create_task(follow(files, renew))
        return runner, f"{self._host}:{runner.addresses[0][1]}"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._server.spoke(request.protocol)
        path = request.raw_path.partition("?")[0]
        peer = "http:{}:{}".format(*request.transport.get_extra_info("peername")[:2])  # type: ignore[union-attr]
        record = CallRecord("http", f"{request.method} {path}", peer)
        if _HEALTH.fullmatch(path):
            return await self._answer_or_refusal(request, path, record)
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._observers.call(record, headers):
            answer = await self._answer_or_refusal(request, path, record)
            record.status = str(answer.status)
        return answer

    async def _answer_or_refusal(
        self, request: web.BaseRequest, path: str, record: CallRecord
    ) -> web.StreamResponse:
        try:
            return await self._checked_answer(request, path, record)
        except (_RefusedError, RefusedError) as error:
            status = _status(error)
            refusal = web.json_response({"error": str(error)}, status=status)
            if status == HTTPStatus.UNAUTHORIZED:
                refusal.headers["WWW-Authenticate"] = "Bearer"
            refusal.force_close()  # what is left of the body is not read
            return refusal

    async def _checked_answer(
        self, request: web.BaseRequest, path: str, record: CallRecord
    ) -> web.StreamResponse:
        self._check_sender(request)
        get, post = request.method == "GET", request.method == "POST"
        is_health, is_infer = bool(_HEALTH.fullmatch(path)), bool(_INFER.fullmatch(path))
        is_open = (get and (is_health or _DESCRIPTION.fullmatch(path))) or (
            post and (is_infer or _GENERATE.fullmatch(path))
        )
        shown = request.headers.get(access.HTTP_HEADER, "")
        may_manage = access.is_token(shown, self._options.token)
        if not is_open and not may_manage:
            raise _RefusedError(
                HTTPStatus.FORBIDDEN,
                f"{request.method} {path} needs the token of the server's start, in the header "
                + access.HTTP_HEADER,
            )
        caller = None
        if is_health and self._calls.draining:
            if path == "/v2/health/live":
                return web.Response()
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, DRAINING)
        if not is_health and not may_manage:
            caller = self._guard.caller(request.headers.get(BEARER, ""))
        record.caller = caller.name if caller else None
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers |= record.passed_on
        body = await self._body(request)
        record.request_bytes = len(body)
        if self._observers.any and is_open:
            _name(record, path, body)
        if post:
            self._guard.spend(caller, len(body))
        size = self._json_size(request, body) if is_infer else len(body)
        if size != len(body):
            headers[_JSON_LENGTH] = str(size)
        await self._check_json(body[:size], may_manage)
        if is_infer and not may_manage:
            if size > _SMALL:
                await asyncio.to_thread(_check_sizes, body, size)
            else:
                _check_sizes(body, size)
        repeatable = bool(is_open) and b"sequence_" not in body[:size]
        return await self._forward(request, record, headers, body, repeatable, held=not is_health)

    def _check_sender(self, request: web.BaseRequest) -> None:
        """Refuse what a web page of another origin sends, under whatever name it knows this one."""
        host = request.headers.get("Host", "")
        name = re.sub(r":\d+$", "", host)
        if name not in (self._host, *self._options.http_hosts) and not _is_own(name, request):
            raise _RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST, f"Host '{host}' is not an address of this server"
            )
        origin = request.headers.get("Origin")
        scheme = "http" if self._options.tls is None else "https"
        if origin is not None and origin != f"{scheme}://{host}":
            raise _RefusedError(
                HTTPStatus.FORBIDDEN, f"requests of web pages ({origin}) are not answered"
            )

    async def _body(self, request: web.BaseRequest) -> bytes:
        length = request.content_length
        if length is None:
            if "Transfer-Encoding" not in request.headers:
                return b""
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "a body needs a Content-Length")
        if "Content-Encoding" in request.headers:
            raise _RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not read: send it plain"
            )
        if length > self._options.body_bytes:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {length} bytes, and at most {self._options.body_bytes} are read",
            )
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            return await asyncio.wait_for(request.content.read(), _BODY_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            raise _RefusedError(
                HTTPStatus.REQUEST_TIMEOUT, f"the body took more than {_BODY_TIMEOUT_S:g} s"
            ) from error

    def _json_size(self, request: web.BaseRequest, body: bytes) -> int:
        """Return how many bytes of an inference request are JSON; tensors follow."""
        text = request.headers.get(_JSON_LENGTH)
        if text is None:
            return len(body)
        if not (text.isascii() and text.isdecimal()) or int(text) > len(body):
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, f"{_JSON_LENGTH} '{text}' of a body of {len(body)} bytes"
            )
        return int(text)

    async def _check_json(self, body: bytes, may_manage: bool) -> None:
        if len(body) > _SMALL:
            await asyncio.to_thread(self._check_json_now, body, may_manage)
        else:
            self._check_json_now(body, may_manage)

    def _check_json_now(self, body: bytes, may_manage: bool) -> None:
        depth = self._options.json_depth
        if json_body.is_deeper_than(depth, body):
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, f"the JSON is nested more than {depth} deep"
            )
        try:
            closed = not may_manage and json_body.refers_to_shared_memory(body)
        except ValueError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from error
        if closed:
            raise _RefusedError(
                HTTPStatus.FORBIDDEN,
                "shared memory needs the token of the server's start, in the header "
                + access.HTTP_HEADER,
            )

    async def _forward(
        self,
        request: web.BaseRequest,
        record: CallRecord,
        headers: dict[str, str],
        body: bytes,
        repeatable: bool,
        held: bool,
    ) -> web.Response:
        async def send() -> web.Response:
            record.sent_ns = record.sent_ns or time.monotonic_ns()
            try:
                return await self._send_routed(request, headers, body, held)
            except aiohttp.ClientError as error:
                raise BrokenError(error, sent=True) from error

        try:
            answer: web.Response = await self._calls.make(
                record.peer, send, held=held, repeatable=repeatable
            )
        except FullError:
            raise _RefusedError(HTTPStatus.TOO_MANY_REQUESTS, FULL) from None
        except DrainingError:
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, DRAINING) from None
        except (AwayError, aiohttp.ClientError) as error:
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, AWAY) from error
        if self._observers.any and isinstance(answer.body, bytes):
            record.answer_bytes = len(answer.body)
            found = _VERSION.search(answer.body[:512])
            record.version = found[1].decode() if found else record.version
        return answer

    async def _send_routed(
        self, request: web.BaseRequest, headers: dict[str, str], body: bytes, held: bool
    ) -> web.Response:
        """Send to the version that the model's route says; a refused one goes to its successor."""
        path, _, query = request.raw_path.partition("?")
        model = routing.path_model(path)
        if model is None or not self._router.has_routes():
            return await self._send(request.method, request.raw_path, headers, body)
        end = time.monotonic() + self._options.hold_s
        while True:
            if held:
                await self._router.wait_until_there(model, end)
            # A sequence stays where it is; a false alarm costs a canary its turn.
            whole = request.method != "POST" or b"sequence_" in body
            choice = self._router.choose(model, whole)

            async def ask(version: int | None) -> web.Response:
                there = routing.path_with_version(path, version) + (query and f"?{query}")
                return await self._send(request.method, there, headers, body)

            answer = await ask(choice.version)
            text = answer.body if answer.status >= HTTPStatus.BAD_REQUEST else b""
            if not (
                isinstance(text, bytes)
                and routing.is_unloaded(text.decode(errors="replace"))
                and self._router.route(model) != choice.route
                and time.monotonic() < end
            ):
                break
        is_infer = _INFER.fullmatch(path) is not None and b"shared_memory" not in body
        if choice.other is not None and is_infer and answer.status == HTTPStatus.OK:
            self._shadow.compare(model, choice, answer, ask, _as_message)
        return answer

    async def _send(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> web.Response:
        assert self._options.http_upstream is not None
        # No connection is kept: an idle one keeps Triton from stopping.
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._options.http_upstream, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
            ) as session,
            session.request(
                method,
                URL(f"http://triton{path}", encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
            ) as answer,
        ):
            kept = {name: answer.headers[name] for name in _GIVEN_BACK if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)


class ConnectionServer(web.Server):
    """Bounds connections, and closes one that asks nothing for `_HEADERS_TIMEOUT_S`."""

    def __init__(self, handler: Any) -> None:
        self.silent: dict[Any, asyncio.TimerHandle] = {}
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            logger=_silent,
            keepalive_timeout=15.0,
            auto_decompress=False,
        )

    def __call__(self) -> Any:
        """Return the protocol of a new connection."""
        if len(self.connections) >= _CONNECTIONS:
            return _Closed()
        connection = super().__call__()
        close = asyncio.get_running_loop().call_later
        self.silent[connection] = close(_HEADERS_TIMEOUT_S, self._close_silent, connection)
        return connection

    def spoke(self, connection: Any) -> None:
        """Take note that a connection has asked something, or has ended."""
        if (timer := self.silent.pop(connection, None)) is not None:
            timer.cancel()  # which would keep what a connection has for so long

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self.spoke(handler)

    def _close_silent(self, connection: web.RequestHandler) -> None:
        del self.silent[connection]
        connection.force_close()


class _Closed(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _check_sizes(body: bytes, size: int) -> None:
    """Refuse a tensor of more elements than a body can hold: Triton would make room for them."""
    try:
        elements = json_body.largest_tensor(body[:size])
    except (ValueError, RecursionError) as error:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from error
    if elements > len(body):
        text = f"a tensor has a shape of {elements} elements in a body of {len(body)} bytes"
        raise _RefusedError(HTTPStatus.BAD_REQUEST, text)


def _as_message(answer: web.Response) -> pb.ModelInferResponse:
    """Return an inference's answer, compressed or not, as gRPC's message."""
    assert isinstance(answer.body, bytes)
    # gzip or zlib, by its head.
    is_plain = "Content-Encoding" not in answer.headers
    body = answer.body if is_plain else zlib.decompress(answer.body, wbits=47)
    return http_messages.answer(body, answer.headers)


def _name(record: CallRecord, path: str, body: bytes) -> None:
    """Write into a record which model and version a path names, and which id a small body."""
    named = _NAMED.match(path)
    if named is None:
        return
    record.model, record.version = named[1], named[2] or ""
    if b'"id"' in body[:_SMALL] and len(body) <= _SMALL:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(body)
            record.id = str(found.get("id", "")) if isinstance(found, dict) else ""


def _is_own(name: str, request: web.BaseRequest) -> bool:
    """Return whether a Host names the address that the request came to."""
    assert request.transport is not None
    address = ipaddress.ip_address(request.transport.get_extra_info("sockname")[0])
    if name == "localhost":
        return address.is_loopback
    try:
        return ipaddress.ip_address(name.strip("[]")) == address
    except ValueError:
        return False
