"""The public functions that run a server: `running` for a block, `serve` until a signal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from bilateral_serving.server.loading import OnProgress
from bilateral_serving.server.processes.launch_command import ServerOptions
from bilateral_serving.server.processes.tritonserver import OnLog
from bilateral_serving.server.ready_file import ReadyFile
from bilateral_serving.server.rollouts.control import listening
from bilateral_serving.server.service import RunningServer, opened
from bilateral_serving.server.supervise import supervise

# How long requests wait while tritonserver is started again.
_HOLD_S = 60.0


@contextlib.contextmanager
def running(
    options: ServerOptions,
    *,
    on_log: OnLog | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[RunningServer]:
    """Start a server, yield it when it is ready, and stop it at the end of the block.

    `on_log` is called from another thread, for every line; `on_progress` from this one. Nothing is
    started again if it dies: that is `serve`'s.

    The server also stops when this process dies, however it dies, and when the thread that called
    this ends (the kernel ties the two together).

    Raises:
        UserError: Something it needs is missing, a port is taken, a model does not load.
    """
    with opened(options, on_log) as service:
        service.start(on_progress, threading.Event())
        yield service.description


def serve(
    options: ServerOptions,
    *,
    signals: Signals | None = None,
    on_log: OnLog | None = None,
    on_progress: OnProgress | None = None,
    on_ready: Callable[[RunningServer], None] | None = None,
    on_event: Callable[[str], None] | None = None,
) -> None:
    """Run a server until Ctrl-C or SIGTERM, then stop it cleanly and return.

    What dies or answers no more is started again (`supervise.py`). A second signal ends the waiting
    for requests under way. To be called in the main thread.

    Args:
        options: What to serve and where.
        signals: Where a caller counts signals already; None: they are counted here.
        on_log: Called for each line of the server's log, from another thread.
        on_progress: Called while models load.
        on_ready: Called when the server is ready for the first time.
        on_event: Called with one line for whatever was wrong, and for what was done.

    Raises:
        UserError: As `running`, or the server cannot be started any more.
    """
    ready = ReadyFile(options.ready_file)
    with (
        contextlib.nullcontext(signals) if signals else signals_counted() as counted,
        opened(options, on_log, counted.second, _HOLD_S) as service,
    ):
        if not service.start(on_progress, counted.first):
            return
        try:
            with listening(options.grpc_port) as control:
                ready.appear()
                if on_ready:
                    on_ready(service.description)
                report = on_event or (lambda _line: None)
                supervise(service, counted.first, report, ready, control)
        finally:
            ready.disappear()


@dataclass(frozen=True)
class Signals:
    """Set by the first SIGINT or SIGTERM, and by the second."""

    first: threading.Event
    second: threading.Event


@contextlib.contextmanager
def signals_counted() -> Iterator[Signals]:
    """Record SIGINT and SIGTERM as events, so that they interrupt nothing half-way."""
    signals = Signals(threading.Event(), threading.Event())

    def record(_number: int, _frame: FrameType | None) -> None:
        (signals.second if signals.first.is_set() else signals.first).set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, record) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
