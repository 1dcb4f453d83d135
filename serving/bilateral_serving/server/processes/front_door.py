"""The front door's process: its start, its log and its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.process_status import busy_s

_POLL_S = 0.02
# Its callers' connections end with it: one that is only paused for a while is waited for.
SILENT_S = 10.0
# Processor time within SILENT_S that counts as work: its loop may be busy with large messages.
_WORK_S = 0.5
# glibc keeps what was freed, in up to eight arenas per processor: messages of megabytes, which
# pass through several threads, make each of them as large as the largest ones need. In few arenas,
# and with such messages outside of them, a front door stays as large as its calls are now.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


class DoorProcess:
    """A front door that listens soon; it ends with this process.

    Args:
        options: What it is told.
        directory: Where it runs: Python must find no foreign module there.
        log_to_output: Whether its access log goes to this process's standard output.
    """

    def __init__(
        self, options: FrontDoorOptions, directory: Path, log_to_output: bool = False
    ) -> None:
        # Its own standard output is a pipe, where it says that it listens.
        output = os.dup(sys.stdout.fileno()) if log_to_output else None
        options = options.model_copy(update={"access_log_fd": output})
        self._options = options
        self._listens = False
        self._seen = self._looked = self._work = 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bilateral_serving.front_door"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=directory,
            env={**_ALLOCATOR, **os.environ},
            start_new_session=True,
            pass_fds=() if output is None else (output,),
        )
        if output is not None:
            os.close(output)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(options.model_dump_json().encode())

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def wait_until_listening(self, timeout_s: float) -> None:
        """Return when it listens.

        Raises:
            UserError: It has ended, or says nothing.
        """
        if self._listens:
            return
        assert self._process.stdout is not None
        answered, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not answered or not self._process.stdout.readline():
            raise UserError(
                f"the front door did not come to listen on {self._options.listen}: "
                f"{self.how_it_ended() or f'it said nothing for {timeout_s:g} s'}",
                "Its messages above say why; or serve without it with --direct.",
            )
        os.set_blocking(self._process.stdout.fileno(), False)
        self._sign_of_life(time.monotonic())
        self._listens = True

    def is_wedged(self) -> bool:
        """Return whether it has neither run nor waited for a processor for `SILENT_S`.

        To be called several times a second.
        """
        assert self._process.stdout is not None
        now = time.monotonic()
        # If this process itself was stopped, the front door is not to blame.
        paused, self._looked = now - self._looked > SILENT_S / 2, now
        beats = b""
        with contextlib.suppress(BlockingIOError):
            beats = os.read(self._process.stdout.fileno(), 1 << 16)
        if beats or paused or busy_s(self.pid) - self._work >= _WORK_S:
            self._sign_of_life(now)
        return now - self._seen > SILENT_S

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def how_it_ended(self) -> str | None:
        """Return how it ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"it ended {f'by {signal.Signals(-code).name}' if code < 0 else f'with {code}'}"

    def stop(self, drain_s: float, hurry: threading.Event) -> None:
        """End it: requests under way get `drain_s` seconds, or until `hurry` is set."""
        try:
            self._process.terminate()
            end = time.monotonic() + drain_s + 1.0
            while time.monotonic() < end and not hurry.is_set() and self._process.poll() is None:
                time.sleep(_POLL_S)
        finally:
            self.kill()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _sign_of_life(self, now: float) -> None:
        self._seen = self._looked = now
        self._work = busy_s(self.pid)
