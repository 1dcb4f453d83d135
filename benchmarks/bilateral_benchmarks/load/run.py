"""Load tests of a target, from one process or several, until the plan is fulfilled."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from bilateral_benchmarks.load.generator import GeneratorHealth, Target, generate, run_event_loop
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.load.trace import Record
from bilateral_benchmarks.load.windows import Measurement, SteadyState
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
    health: GeneratorHealth


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
        gc.collect()
        gc.freeze()  # the event loop does it too, which takes long where much is alive
        start = time.monotonic() + _HEAD_START_S
        steady_state = SteadyState(plan, start, load.rate is None)

        def sink(records: list[Record], now: float) -> bool:
            finished = steady_state.feed(records, now)
            if on_progress:
                on_progress(*steady_state.progress)
            return finished

        health = run_event_loop(generate(target, load, start, sink))
    else:
        steady_state, health = _several(target, load, plan, on_progress)
    if health.overrun:
        raise OverloadedError(load)
    measurement = steady_state.measurement()
    if not len(measurement.trace):
        raise UserError(
            f"no request was due within {plan.windows * plan.window_s:g} s of {load}",
            "Measure for longer.",
        )
    if not measurement.trace.ok.any():
        reason = health.failure or "no request was answered in time"
        raise RunFailedError(f"no request succeeded: {reason}", "Nothing was measured.")
    return Outcome(measurement, health)


def _several(
    target: Target, load: Load, plan: Plan, on_progress: OnProgress | None
) -> tuple[SteadyState, GeneratorHealth]:
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
        steady_state = SteadyState(plan, start, load.rate is None)
        healths = _collect(pipes, steady_state, on_progress)
    except EOFError as error:
        raise UserError("a load-generating process died", "Look for its message above.") from error
    finally:
        for pipe in pipes:
            pipe.close()  # those that still send notice it, and end
        for worker in workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
    return steady_state, GeneratorHealth(
        pauses_s=tuple(pause for health in healths for pause in health.pauses_s),
        overrun=any(health.overrun for health in healths),
        failure=next((health.failure for health in healths if health.failure), None),
    )


def _collect(
    pipes: list[Connection], steady_state: SteadyState, on_progress: OnProgress | None
) -> list[GeneratorHealth]:
    """Feed the steady_state from all processes until each has said how it behaved."""
    seen = dict.fromkeys(pipes, 0.0)
    healths: list[GeneratorHealth] = []
    stopped = False
    while seen:
        for pipe in wait(list(seen)):
            assert isinstance(pipe, Connection)
            message = pipe.recv()
            if isinstance(message, GeneratorHealth):
                healths.append(message)
                del seen[pipe]
                continue
            records, seen[pipe] = message
            # A window is over when the slowest of the processes has passed its end.
            new = [Record(*record) for record in records]
            finished = steady_state.feed(new, min(seen.values()))
            if on_progress:
                on_progress(*steady_state.progress)
            if (finished or any(health.overrun for health in healths)) and not stopped:
                stopped = True
                for other in seen:
                    other.send("stop")
    return healths


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
