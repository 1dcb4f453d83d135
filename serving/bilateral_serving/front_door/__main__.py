"""`python -m bilateral_serving.front_door`, with `FrontDoorOptions` as JSON on standard input."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import time

# gRPC reads it when it is imported; what goes wrong is said here, in one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio
from pydantic import ValidationError

from bilateral_export.errors import UserError
from bilateral_serving._launch import end_with
from bilateral_serving.front_door.call_record import Observers
from bilateral_serving.front_door.calls import Calls
from bilateral_serving.front_door.grpc_proxy import GrpcProxy
from bilateral_serving.front_door.guard import Guard
from bilateral_serving.front_door.heartbeat import beat
from bilateral_serving.front_door.observing import observed
from bilateral_serving.front_door.options import FrontDoorOptions, Listening
from bilateral_serving.front_door.shadow import Shadow
from bilateral_serving.front_door.tls import grpc_credentials
from bilateral_serving.front_door.upstream import Upstream
from bilateral_serving.tokens import Tokens

_MANY = 1_000_000
# Seconds until a connection has said that it speaks HTTP/2; until one that is silent is asked
# whether it is still there, and until it must have answered; until one without calls is closed.
_HANDSHAKE_S, _KEEPALIVE_S, _KEEPALIVE_TIMEOUT_S, _IDLE_S = 10, 60, 20, 600


def main() -> int:
    """Run a front door until SIGTERM, SIGINT or the end of the parent; return the exit code."""
    logging.basicConfig(stream=sys.stderr, format="front door: %(message)s", level=logging.INFO)
    # A caller that leaves, or takes no message of this size, while its answer is written would
    # otherwise be a traceback in the log.
    logging.getLogger("grpc._cython.cygrpc").addFilter(
        lambda record: not record.getMessage().startswith("ExecuteBatchError")
    )
    try:
        options = FrontDoorOptions.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            logging.error("option %s: %s", ".".join(map(str, problem["loc"])), problem["msg"])
        return 2
    if options.parent is not None:
        end_with(options.parent)
    # A connection is a file: as many as the system lets this process have.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        asyncio.run(_run(options))
    except (OSError, UserError) as error:
        logging.error("%s", error)
        return 2
    return 0


async def _run(options: FrontDoorOptions) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    upstream = Upstream(options.upstream, options.hold_s, options.message_bytes)
    calls = Calls(options, upstream)
    guard = Guard(None if options.tokens is None else Tokens(options.tokens))
    async with observed(options) as observers:
        await _serve(options, upstream, calls, guard, observers, stop)


async def _serve(
    options: FrontDoorOptions,
    upstream: Upstream,
    calls: Calls,
    guard: Guard,
    observers: Observers,
    stop: asyncio.Event,
) -> None:
    shadow = Shadow(options.rollouts, calls.start)
    proxy = GrpcProxy(options, upstream, calls, guard, observers, shadow)
    server, grpc_address = await _listen(options, proxy)
    http, http_address = None, None
    try:
        if options.http_listen is not None:
            # aiohttp comes with the server, not with the client.
            from bilateral_serving.front_door.http_proxy import HttpProxy

            http_proxy = HttpProxy(options, calls, guard, observers, shadow)
            http, http_address = await http_proxy.listen()
        # Or else each full collection goes through all that was imported, while every caller waits.
        gc.collect()
        gc.freeze()
        print(Listening(grpc=grpc_address, http=http_address).model_dump_json(), flush=True)
        beating = asyncio.create_task(beat(sys.stdout.fileno()))
        await stop.wait()
        beating.cancel()
    finally:
        # Nobody is ready any more and new requests are refused, on connections that stay; those
        # that were accepted are answered.
        end, calls.draining = time.monotonic() + options.drain_s, True
        await calls.drain(options.drain_s)
        left_s = max(0.0, end - time.monotonic())
        await asyncio.gather(server.stop(left_s), *([http.cleanup()] if http else []))
        await upstream.channel.close()


async def _listen(options: FrontDoorOptions, proxy: GrpcProxy) -> tuple[grpc.aio.Server, str]:
    """Start to answer gRPC; the address says which port it became.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    server = grpc.aio.server(
        handlers=(proxy,),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", options.message_bytes),
            ("grpc.max_send_message_length", -1),
            # No limit of streams: those that are opened before a caller knows it are reset.
            # Else gRPC draws lots when more than a thousand calls of all callers wait to be begun,
            # and cancels whom it hits.
            ("grpc.server.max_pending_requests", _MANY),
            ("grpc.server.max_pending_requests_hard_limit", _MANY),
            ("grpc.server_max_unrequested_time_in_server", _MANY),
            ("grpc.server_handshake_timeout_ms", 1000 * _HANDSHAKE_S),
            ("grpc.keepalive_time_ms", 1000 * _KEEPALIVE_S),
            ("grpc.keepalive_timeout_ms", 1000 * _KEEPALIVE_TIMEOUT_S),
            ("grpc.max_connection_idle_ms", 1000 * _IDLE_S),
            # Callers may ask as often as they like whether the server is still there.
            ("grpc.http2.max_ping_strikes", 0),
        ],
    )
    try:
        port = (
            server.add_insecure_port(options.listen)
            if options.tls is None
            else server.add_secure_port(options.listen, grpc_credentials(options.tls))
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {options.listen}: {error}") from error
    await server.start()
    return server, f"{options.listen.rpartition(':')[0]}:{port}"


if __name__ == "__main__":
    sys.exit(main())
