"""The tritonserver process: start, log, loaded models, and end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bilateral_serving.process_status import children
from bilateral_serving.server.processes.log import (
    LogLine,
    begun_model,
    failed_model,
    is_drained,
    loaded_model,
    parse,
    reasons,
)

OnLog = Callable[[LogLine], None]

_LAUNCH = Path(__file__).parents[2] / "_launch.py"
_POLL_S = 0.02
_KEPT_LINES = 400
# Unloading takes Triton one to two seconds, or all of its time if a model's process has died or a
# client keeps a connection open.
_UNLOAD_S = 3.0


class TritonProcess:
    """A process that ends with the thread that made this object, and the reader of its log.

    Args:
        command: Its program and arguments.
        environment: Its environment variables.
        shared_memory: Beginning of the names of its shared memory, which is removed with it.
        on_log: Called for each line of its log, from another thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        shared_memory: str,
        on_log: OnLog | None,
    ) -> None:
        self._shared_memory = shared_memory
        self._lines: deque[LogLine] = deque(maxlen=_KEPT_LINES)
        self.begun: set[str] = set()  # the models that it has begun to load
        self._loaded: dict[str, None] = {}
        self.failed: dict[str, str] = {}  # the models that did not load, and why
        self._drained = threading.Event()
        self._on_log = on_log
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(_LAUNCH), str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            # A session of its own: Ctrl-C reaches this process, which then stops the server.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, name="triton-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models that it has loaded so far."""
        return tuple(self._loaded)

    def model_processes(self) -> dict[int, str]:
        """Return the processes of models in Python: number -> model."""
        # Their second word is <repository>/<model>/<version>/model.py.
        return {
            pid: Path(status.command[1]).parent.parent.name
            for pid, status in children(self.pid).items()
            if len(status.command) > 1 and status.command[1].endswith("/model.py")
        }

    def how_it_ended(self) -> list[str] | None:
        """Return the lines of the log that say why the process has ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        # After a signal its models' processes hold the log open, and nothing there is asked for.
        self._reader.join(timeout=2.0 if code >= 0 else 0.1)
        if code >= 0 and (why := reasons(list(self._lines))):
            return why
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return [f"it ended {how} and gave no reason"]

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it, one of its own faults such as SIGSEGV included."""
        return (self._process.poll() or 0) < 0

    def last_words(self) -> str:
        """Return the last log line not from Triton, such as what a dying process wrote."""
        own = [
            line.text
            for line in self._lines
            if line.is_foreign and line.text.strip() and not line.text.startswith(("+-", "| "))
        ]
        return own[-1].strip() if own else "it gave no reason"

    def stop(self, drain_s: float, hurry: threading.Event) -> None:
        """End the process: requests under way get `drain_s` seconds, or until `hurry` is set."""
        try:
            if self._process.poll() is None:
                self._process.terminate()
                self._wait_until_stopped(drain_s, hurry)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and those of its models at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=2.0)
        for leftover in Path("/dev/shm").glob(f"{self._shared_memory}*"):
            leftover.unlink(missing_ok=True)

    def _wait_until_stopped(self, drain_s: float, hurry: threading.Event) -> None:
        end = time.monotonic() + drain_s
        drained = False
        while time.monotonic() < end and not hurry.is_set() and self._process.poll() is None:
            if self._drained.is_set() and not drained:
                drained, end = True, min(end, time.monotonic() + _UNLOAD_S)
            time.sleep(_POLL_S)

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        line: LogLine | None = None
        for text in self._process.stdout:
            line = parse(text, line)
            self._lines.append(line)
            if name := begun_model(line):
                self.begun.add(name)
            if name := loaded_model(line):
                self._loaded[name] = None
            if failure := failed_model(line):
                self.failed[failure[0]] = failure[1]
            if is_drained(line):
                self._drained.set()
            try:
                if self._on_log:
                    self._on_log(line)
            except Exception:
                # Nobody listens any more. Going on reading keeps the server from blocking.
                self._on_log = None
