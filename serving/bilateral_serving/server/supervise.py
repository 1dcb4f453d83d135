"""Supervision: restarts of a server that has died or does not answer, with backoff."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from bilateral_export.errors import UserError
from bilateral_serving.server.health import Fault
from bilateral_serving.server.ready_file import ReadyFile
from bilateral_serving.server.rollouts.control import Control
from bilateral_serving.server.service import Service

_POLL_S = 0.1
# The second restart in a row waits this long, each further one twice as long, up to the last.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
# Whoever has served for so long has recovered.
_CALM_S = 60.0
_FAILED_STARTS = 5
_DEATHS_OF_A_MODEL = 5

OnEvent = Callable[[str], None]


def supervise(
    service: Service,
    stop: threading.Event,
    on_event: OnEvent,
    ready: ReadyFile,
    control: Control,
) -> None:
    """Watch a server that is ready until `stop` is set, and carry out the rollouts asked for.

    A server that dies, and one of which a model's process has died or is wedged, is started again,
    first at once and then with pauses that double. A model that brings it down five times in a row
    is left out, if there are others, and one that does not load any more is tried again at the
    next start. What happened is said in one line each time.

    Raises:
        UserError: It cannot be started any more.
    """
    in_a_row = restarts = 0
    blamed: Counter[str] = Counter()
    ready_at = time.monotonic()
    service.watch()
    while not stop.wait(_POLL_S):
        ready.tend()
        if door_fault := service.door_fault():
            ready.disappear()
            service.mend_door()
            ready.appear()
            on_event(f"The front door was started again: {door_fault}.")
        if service.rollouts.take(control.asked, service, stop):
            service.watch()
        fault = service.fault()
        if fault is None:
            continue
        if time.monotonic() - ready_at > _CALM_S:
            in_a_row = 0
            blamed.clear()
        ready.disappear()
        restarts += 1
        in_a_row += 1
        found_at = time.monotonic()
        # At once: the front door repeats what was under way, also what a dead process has got.
        service.kill_triton()
        if fault.model:
            if tried := service.rollouts.end_trial(fault.model):
                on_event(f"Version {tried} of '{fault.model}' is not tried any more.")
            blamed[fault.model] += 1
            if blamed[fault.model] >= _DEATHS_OF_A_MODEL and len(service.models) > 1:
                service.leave_out(fault.model, fault.reason)
                on_event(f"Model '{fault.model}' is not served any more: {fault.reason}.")
        before = service.failed
        if not _start(service, stop, fault, in_a_row, on_event):
            return
        ready_at = time.monotonic()
        service.watch()
        ready.appear()
        on_event(
            f"Restart {restarts}, ready again {ready_at - found_at:.1f} s later: {fault.reason}."
        )
        for line in _changes(before, service.failed):
            on_event(line)


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Return which models a start could not load any more, and which it could again."""
    for model in sorted(after.keys() - before.keys()):
        yield f"Model '{model}' is not served any more: {after[model]}."
    for model in sorted(before.keys() - after.keys()):
        yield f"Model '{model}' is served again."


def _start(
    service: Service, stop: threading.Event, fault: Fault, in_a_row: int, on_event: OnEvent
) -> bool:
    """Start the server again, several times if need be; False if `stop` is set before it serves."""
    pauses = in_a_row - 1
    for failures in range(_FAILED_STARTS):
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (pauses - 1)) if pauses else 0.0
        if stop.wait(pause_s):
            return False
        try:
            return service.start(None, stop)
        except UserError as error:
            service.kill_triton()
            on_event(f"Start {failures + 1} of {_FAILED_STARTS} failed: {error.problem}")
            last = error
            pauses += 1
    raise UserError(
        f"{fault.reason}, and it could not be started again in {_FAILED_STARTS} tries: "
        f"{last.problem}",
        last.fix,
    )
