"""Put a load on a target, from one process or several, until the plan is fulfilled."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from bilateral_benchmarks.load.generator import Conduct, Target, generate, run_event_loop
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.load.trace import Record
from bilateral_benchmarks.load.windows import Measurement, Watch
from bilateral_export.errors import UserError

OnProgress = Callable[[float, float | None], None]
"""Called with the seconds warmed up or measured so far and the last window's median, s."""

_HEAD_START_S = 0.1


class RunFailedError(UserError):
    """What was measured does not work: a verdict, not a wrong input."""

    exit_code = 1


class OverloadedError(RunFailedError):
    """The target fell so far behind an open loop that the run was ended."""

    def __init__(self, load: Load) -> None:
        super().__init__(
            f"the server cannot keep up with {load.rate:g} requests/s: too many are outstanding",
            "Lower the rate.",
        )


@dataclass(frozen=True)
class Outcome:
    """A measurement and how the generator behaved in it."""

    measurement: Measurement
    conduct: Conduct


def run_load(
    target: Target, load: Load, plan: Plan, on_progress: OnProgress | None = None
) -> Outcome:
    """Measure `target` under `load`.

    Args:
        target: What requests go to. With several processes it is pickled to each.
        load: Who sends when.
        plan: How long.
        on_progress: Called about ten times a second.

    Raises:
        RunFailedError: Every request failed, or the target fell too far behind an open loop.
        UserError: No request was due.
    """
    if load.processes == 1:
        start = time.monotonic() + _HEAD_START_S
        watch = Watch(plan, start, load.rate is None)

        def sink(records: list[Record], now: float) -> bool:
            finished = watch.feed(records, now)
            if on_progress:
                on_progress(*watch.progress)
            return finished

        conduct = run_event_loop(generate(target, load, start, sink))
    else:
        watch, conduct = _several(target, load, plan, on_progress)
    if conduct.overrun:
        raise OverloadedError(load)
    measurement = watch.measurement()
    if not len(measurement.trace):
        raise UserError(
            f"no request was due within {plan.windows * plan.window_s:g} s of {load}",
            "Measure for longer.",
        )
    if not measurement.trace.ok.any():
        reason = conduct.failure or "no request was answered in time"
        raise RunFailedError(f"no request succeeded: {reason}", "Nothing was measured.")
    return Outcome(measurement, conduct)


def _several(
    target: Target, load: Load, plan: Plan, on_progress: OnProgress | None
) -> tuple[Watch, Conduct]:
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    workers = []
    try:
        for share in load.shares():
            ours, theirs = context.Pipe()
            worker = context.Process(target=_worker, args=(target, share, theirs), daemon=True)
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        for pipe in pipes:
            pipe.recv()  # ready: connecting and importing is not part of the schedule
        start = time.monotonic() + _HEAD_START_S
        for pipe in pipes:
            pipe.send(start)
        watch = Watch(plan, start, load.rate is None)
        conducts = _collect(pipes, watch, on_progress)
    except EOFError as error:
        raise UserError("a load-generating process died", "Look for its message above.") from error
    finally:
        for pipe in pipes:
            pipe.close()  # those that still send notice it, and end
        for worker in workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
    return watch, Conduct(
        pauses_s=tuple(pause for conduct in conducts for pause in conduct.pauses_s),
        overrun=any(conduct.overrun for conduct in conducts),
        failure=next((conduct.failure for conduct in conducts if conduct.failure), None),
    )


def _collect(
    pipes: list[Connection], watch: Watch, on_progress: OnProgress | None
) -> list[Conduct]:
    """Feed the watch from all processes until each has said how it behaved."""
    seen = dict.fromkeys(pipes, 0.0)
    conducts: list[Conduct] = []
    stopped = False
    while seen:
        for pipe in wait(list(seen)):
            assert isinstance(pipe, Connection)
            message = pipe.recv()
            if isinstance(message, Conduct):
                conducts.append(message)
                del seen[pipe]
                continue
            records, seen[pipe] = message
            # A window is over when the slowest of the processes has passed its end.
            finished = watch.feed([Record(*record) for record in records], min(seen.values()))
            if on_progress:
                on_progress(*watch.progress)
            if (finished or any(conduct.overrun for conduct in conducts)) and not stopped:
                stopped = True
                for other in seen:
                    other.send("stop")
    return conducts


def _worker(target: Target, load: Load, pipe: Connection) -> None:
    """Generate one share of a load for as long as the other end of the pipe is open."""
    # Ctrl-C goes to every process of a terminal; the one that asked for the load ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        _generate_for(pipe, target, load)


def _generate_for(pipe: Connection, target: Target, load: Load) -> None:
    pipe.send("ready")
    start = pipe.recv()

    def sink(records: list[Record], now: float) -> bool:
        pipe.send(([tuple(record) for record in records], now))
        return pipe.poll()

    pipe.send(run_event_loop(generate(target, load, start, sink)))
