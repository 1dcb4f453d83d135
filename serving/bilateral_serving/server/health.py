"""Health of a running tritonserver and its models: dead, wedged, or busy.

Triton 2.51 does not notice that the process of a Python model has died: every request to it fails
from then on, and the server says that it is ready. So those processes are watched, and each model
is asked for a real inference about once a second, by a thread of its own, which waits for one
answer before it asks again.

A probe waits in the same queue as the callers' requests. A model that is busy uses processor time,
or waits for some; one that is wedged does neither. What has sent no answer for `SILENT_S` without
either is wedged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bilateral_serving.process_status import busy_s, read_status
from bilateral_serving.server.upstream import Probe

SILENT_S = 2.0
# Processor time within SILENT_S that counts as work: Triton's own housekeeping is far below it.
_WORK_S = 0.1
_PROBE_EVERY_S = 1.0
# Probes of a slow model take at most this share of a processor.
_PROBE_SHARE = 0.05
_PROBE_EVERY_AFTER_ERROR_S = 10.0
_UNHEALTHY = "is not healthy"


@dataclass(frozen=True)
class Fault:
    """Why a server must be started again, and the model that is to blame, if it is one."""

    reason: str
    model: str | None = None


class Health:
    """Watches one server until it is closed.

    Args:
        server: The process number of tritonserver.
        model_processes: The processes of its models: number -> model.
        probes: Model -> how to ask it.
    """

    def __init__(
        self, server: int, model_processes: Mapping[int, str], probes: Mapping[str, Probe]
    ) -> None:
        self._model_processes = model_processes
        self._closed = threading.Event()
        self._probing = [
            _Probing(
                model,
                probe,
                [pid for pid, owner in model_processes.items() if owner == model] or [server],
                self._closed,
            )
            for model, probe in probes.items()
        ]

    def fault(self) -> Fault | None:
        """Return what is wrong now; None if nothing is. To be called several times a second."""
        for pid, model in self._model_processes.items():
            if read_status(pid) is None:
                return Fault(f"the process of model '{model}' died", model)
        for probing in self._probing:
            if fault := probing.fault():
                return fault
        return None

    def close(self) -> None:
        """Ask no more; a thread that waits for an answer ends with the server."""
        self._closed.set()


class _Probing:
    """Asks one model again and again, and knows for how long it has been silent."""

    def __init__(
        self, model: str, probe: Probe, processes: list[int], closed: threading.Event
    ) -> None:
        self._model, self._probe = model, probe
        self._processes, self._closed = processes, closed
        self._asked = 0  # counts the questions
        self._waits = False
        self._problem: str | None = None
        self._seen = (0, 0.0, 0.0)  # at the last sign of life: question, time and work until then
        self._looked = time.monotonic()
        threading.Thread(target=self._ask, name=f"probe {model}", daemon=True).start()

    def fault(self) -> Fault | None:
        problem = self._problem
        if problem is not None and _UNHEALTHY in problem:
            return Fault(f"the process of model '{self._model}' {_UNHEALTHY}", self._model)
        now = time.monotonic()
        # If this process itself was stopped, the model is not to blame.
        paused, self._looked = now - self._looked > SILENT_S / 2, now
        question, since, before = self._seen
        work = sum(map(busy_s, self._processes))
        if paused or not self._waits or question != self._asked or work - before >= _WORK_S:
            self._seen = (self._asked, now, work)
        elif now - since > SILENT_S:
            return Fault(
                f"model '{self._model}' is wedged: no answer and no work for {SILENT_S:g} s",
                self._model,
            )
        return None

    def _cpu_s(self) -> float:
        found = map(read_status, self._processes)
        return sum(status.cpu_s for status in found if status is not None)

    def _ask(self) -> None:
        pause_s = 0.0
        while not self._closed.wait(pause_s):
            self._asked += 1
            self._waits = True
            before_s = self._cpu_s()
            self._problem = self._probe()
            self._waits = False
            pause_s = max(_PROBE_EVERY_S, (self._cpu_s() - before_s) / _PROBE_SHARE)
            if self._problem is not None:
                pause_s = max(pause_s, _PROBE_EVERY_AFTER_ERROR_S)
