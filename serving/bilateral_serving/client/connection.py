"""One process's gRPC channel to a server. No call on it is ever cancelled or given a deadline.

Triton 2.51 can die of a unary call that its client cancels, which gRPC does itself when a deadline
passes. Each call is therefore made by a thread that waits for its end; whoever asked for it waits
as long as it likes and leaves the call to run on.

gRPC works in a forked child only if no thread was inside gRPC at the fork: a fork waits for the
calls under way, and a child that was forked in the middle of one gets a clear error, not a crash.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeAlias

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.grpc._utils import get_error_grpc

from bilateral_export.errors import UserError
from bilateral_serving import access
from bilateral_serving.access import is_loopback
from bilateral_serving.client.shared_memory import Regions
from bilateral_serving.credentials import Credentials, open_channel

logger = logging.getLogger(__name__)

# A thread's own call is faster than gRPC's future; beyond so many at once futures are used.
_MOST_THREADS = 64
# Calls that run on though nobody waits for them.
MOST_LATE = 64
# How long closing waits for calls that still run, and then for the server to unmap the regions.
CLOSING_S = 5.0
_UNMAPPING_S, _UNMAPPING_POLL_S = 5.0, 0.01
_IN_USE = "currently in use"  # how Triton refuses to forget a region that a request reads
# How long a fork waits for calls under way.
_FORK_S = 5.0

Call: TypeAlias = "Future[Any]"
# Told the error, or None, when a call is over, before its result is there.
OnEnd: TypeAlias = Callable[[Exception | None], None]

_fork = threading.RLock()  # held during a fork: no call begins then
_under_way: set[Call] = set()
_used = False  # whether this process, or one that it was forked from, has made a channel
_quiet = True  # whether no call was under way when a fork began
_unusable: str | None = None  # why gRPC cannot be used in this process
_forks = 0  # between the first process and this one


def process() -> tuple[int, int]:
    """Return what identifies this process among its forks; process numbers alone are reused."""
    return os.getpid(), _forks


def begin() -> Call:
    """Register a call that is about to be made; a fork waits for its result.

    Raises:
        UserError: This process cannot use gRPC.
    """
    with _fork:
        _check_usable()
        call: Call = Future()
        _under_way.add(call)
    call.add_done_callback(_under_way.discard)
    return call


def channel(url: str, credentials: Credentials | None) -> grpc.Channel:
    """Open a channel of this process's own; one to a loopback address never uses a proxy.

    Raises:
        UserError: This process cannot use gRPC, or the credentials cannot be read.
    """
    global _used
    _check_usable()
    _used = True
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Otherwise a forked child's channel would use its parent's connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0 if is_loopback(url) else 1),
    ]
    return open_channel(url, options, credentials)


class Connection:
    """A channel, the calls on it, and the shared memory that they use.

    Args:
        url: The server's address.
        token: The token of the server's start, if it was given; None: looked up when it is needed.
        shared_memory: Whether it is wanted, as `Regions` takes it.
        credentials: TLS and the bearer token; None: the environment's.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        shared_memory: bool | None,
        credentials: Credentials | None = None,
    ) -> None:
        credentials = Credentials.from_environment() if credentials is None else credentials
        self._metadata = credentials.metadata
        self.regions = Regions(url, shared_memory)
        self._url = url
        self._given = token
        self._token = token
        self._channel = channel(url, credentials)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._lock = threading.RLock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._calls: set[Call] = set()
        self._late: set[Call] = set()
        self._closed = False

    def start(self, method: str, request: Any, on_end: OnEnd | None = None) -> Call:
        """Make a call of Triton's gRPC service that runs until it ends by itself.

        Args:
            method: Its name, such as "ModelInfer".
            request: Its message.
            on_end: Called once when the call is over, or if it is refused here.

        Raises:
            UserError: The connection is closed, or too many calls run on that nobody waits for.
        """
        try:
            if self._closed:
                raise UserError(f"the client of {self._url} is closed", "Make a new one.")
            if len(self._late) >= MOST_LATE:
                raise UserError(
                    f"{len(self._late)} calls to {self._url} that nobody waits for still run",
                    "Send less, raise the timeout, or look whether the server still answers.",
                )
            return self._start(method, request, on_end)
        except Exception as refused:
            if on_end:
                on_end(refused)
            raise

    def leave(self, call: Call) -> None:
        """Stop waiting for a call. It counts as late until it ends."""
        if not call.done():
            self._late.add(call)
            call.add_done_callback(self._late.discard)

    def find_token(self) -> bool:
        """Look the server's token up again; whether it is another one than before."""
        before = self._token
        if self._given is None and is_loopback(self._url):
            self._token = access.find_token(self._url)
        return self._token not in (None, before)

    def close(self) -> None:
        """Wait for the calls that run, give the shared memory back and close the channel."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        running = wait(set(self._calls), CLOSING_S).not_done
        if running:
            logger.warning(
                "%s: %d calls did not end within %g s; they are cancelled",
                self._url,
                len(running),
                CLOSING_S,
            )
        self._unmap([region.name for region in self.regions.every()])
        self._channel.close()
        self.regions.close()
        for _ in range(self._threads):
            self._jobs.put(None)

    def _unmap(self, regions: list[str]) -> None:
        """Let the server forget regions; it may use one for a moment after it has answered."""
        end = time.monotonic() + _UNMAPPING_S
        while regions and (left_s := end - time.monotonic()) > 0:
            calls = {
                self._start(
                    "SystemSharedMemoryUnregister",
                    pb.SystemSharedMemoryUnregisterRequest(name=name),
                    None,
                ): name
                for name in regions
            }
            done = wait(calls, left_s).done
            regions = [calls[call] for call in done if _IN_USE in str(call.exception())]
            if regions:
                time.sleep(_UNMAPPING_POLL_S)

    def _start(self, method: str, request: Any, on_end: OnEnd | None) -> Call:
        call = begin()
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        # A front door asks for it too when a request reads shared memory.
        metadata = self._metadata
        if self._token:
            metadata += ((access.METADATA_KEY, self._token),)
        make = getattr(self._stub, method)
        try:
            with self._lock:
                own = self._idle > 0 or self._threads < _MOST_THREADS
                if self._idle:
                    self._idle -= 1
                elif own:
                    threading.Thread(target=self._work, name="grpc call", daemon=True).start()
                    self._threads += 1
            if own:
                made = partial(make, request, metadata=metadata)
                self._jobs.put(partial(self._finish, call, made, on_end, True))
            else:
                future = make.future(request, metadata=metadata)
                future.add_done_callback(
                    lambda future: self._finish(call, future.result, on_end, False)
                )
        except BaseException:  # no thread can be started, say; nothing was sent
            call.cancel()
            raise
        return call

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job

    def _finish(
        self, call: Call, made: Callable[[], Any], on_end: OnEnd | None, idle: bool
    ) -> None:
        answer, error = None, None
        try:
            answer = made()
        except grpc.RpcError as broken:
            error = get_error_grpc(broken)
        except Exception as other:  # the channel was closed
            error = other.with_traceback(None)
        if on_end:
            on_end(error)
        if idle:
            with self._lock:
                self._idle += 1
        if error is None:
            call.set_result(answer)
        else:
            call.set_exception(error)


def _check_usable() -> None:
    if _unusable:
        raise UserError(
            f"{_unusable}, so it cannot call a server",
            "Start it with the method 'spawn' (DataLoader(multiprocessing_context='spawn')), or "
            "fork while no call is under way.",
        )


def _before_fork() -> None:
    global _quiet
    _fork.acquire()
    _quiet = not wait(set(_under_way), _FORK_S).not_done


def _after_fork_in_child() -> None:
    global _unusable, _forks
    _forks += 1
    if not _quiet:
        _unusable = f"process {os.getpid()} was forked while its parent was calling a server"
    elif _used and os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() in ("0", "no", "false"):
        _unusable = (
            f"process {os.getpid()} was forked from one that has called a server, "
            "with GRPC_ENABLE_FORK_SUPPORT off"
        )
    _under_way.clear()
    _fork.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_fork.release,
    after_in_child=_after_fork_in_child,
)
