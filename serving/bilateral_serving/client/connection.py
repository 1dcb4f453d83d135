"""One process's connection to a server. No call on it is ever cancelled or given a deadline.

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
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeAlias

from tritonclient.grpc import service_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_serving.client import tracing
from bilateral_serving.client.call_metadata import Metadata, Pairs, pairs
from bilateral_serving.client.shared_memory import Regions

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


def use_grpc() -> None:
    """Note that this process makes a gRPC channel.

    Raises:
        UserError: It cannot use gRPC.
    """
    global _used
    _check_usable()
    _used = True


class Connection(ABC):
    """Calls to one server, the threads that make them, and the shared memory that they use.

    What a way to a server writes is `_make`, `_disconnect` and, if it has it, `_make_later`.

    Args:
        url: The server's address.
        shared_memory: Whether it is wanted, as `Regions` takes it.
        metadata: What every call carries.
        given: What the caller adds to that.
    """

    def __init__(
        self, url: str, shared_memory: bool | None, metadata: Pairs, given: Metadata | None
    ) -> None:
        self.url = url
        self.regions = Regions(url, shared_memory)
        self._fixed, self._given_metadata = metadata, given
        self._lock = threading.RLock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0  # less the jobs that wait for a thread
        self._calls: set[Call] = set()
        self._late: set[Call] = set()
        self._closed = False

    @abstractmethod
    def _make(self, method: str, request: Any, metadata: Pairs) -> Any:
        """Make a call and return the answer.

        Raises:
            InferenceServerException: The call failed; its status is gRPC's.
        """

    def _make_later(
        self, method: str, request: Any, metadata: Pairs, finish: Callable[[Any], None]
    ) -> bool:
        """Begin a call without a thread of its own; False if there is no such way.

        `finish` is then called at its end, with what gives the answer or raises its error.
        """
        del method, request, metadata, finish
        return False

    @abstractmethod
    def _disconnect(self) -> None:
        """Close the connection, which cancels what still runs."""

    def find_token(self) -> bool:
        """Look the server's token up again; whether it is another one than before."""
        return False

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
                raise UserError(f"the client of {self.url} is closed", "Make a new one.")
            if len(self._late) >= MOST_LATE:
                raise UserError(
                    f"{len(self._late)} calls to {self.url} that nobody waits for still run",
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
                self.url,
                len(running),
                CLOSING_S,
            )
        self._unmap([region.name for region in self.regions.every()])
        self._disconnect()
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
        metadata = self._fixed + pairs(self._given_metadata)
        call = begin()
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            if (span := tracing.begin(method, self.url)) is not None:
                metadata += span[0]
                call.add_done_callback(span[1])
            with self._lock:
                own = self._idle > 0 or self._threads < _MOST_THREADS
                if self._idle > 0:
                    self._idle -= 1
                elif own:
                    threading.Thread(target=self._work, name="server call", daemon=True).start()
                    self._threads += 1
            if not own:
                if self._make_later(
                    method, request, metadata, lambda made: self._finish(call, made, on_end, False)
                ):
                    return call
                with self._lock:
                    self._idle -= 1
            made = partial(self._make, method, request, metadata)
            self._jobs.put(partial(self._finish, call, made, on_end, True))
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
        except Exception as raised:  # the server's, or that the connection was closed
            error = raised.with_traceback(None)
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
