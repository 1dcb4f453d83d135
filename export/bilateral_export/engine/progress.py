"""The builder's progress, and Ctrl-C or SIGTERM while it builds."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from bilateral_export.engine.installation.library import Library

# (phase, steps done, steps in all)
Progress = Callable[[str, int, int], None]


@contextlib.contextmanager
def interruptible(
    config: Any, progress: Progress | None, library: Library
) -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into the builder's own way of stopping, while the block runs.

    What a signal handler raises in a callback would have to pass through the builder's C++ frames,
    and is lost there; so the signal sets a flag, and the monitor's next step tells the builder to
    stop. A signal that the process ignores or leaves to the system stays so.
    """
    interrupted = threading.Event()
    config.progress_monitor = _monitor(library.trt, interrupted, progress)
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread alone
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raising = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in raising:
        signal.signal(number, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)


def _monitor(trt: Any, interrupted: threading.Event, progress: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            if progress is not None:
                progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if progress is not None:
                progress(phase, step + 1, self.steps.get(phase, step + 1))
            return not interrupted.is_set()

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase, 0)
            if progress is not None:
                progress(phase, steps, steps)

    return Monitor()
