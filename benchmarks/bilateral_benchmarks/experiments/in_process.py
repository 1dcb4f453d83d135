"""Latency and throughput of a runner in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from bilateral_benchmarks.load.answers import Expected, first_answer
from bilateral_benchmarks.load.generator import TICK_S, GeneratorHealth
from bilateral_benchmarks.load.report import Report, summarise
from bilateral_benchmarks.load.run import OnProgress, Outcome
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.load.trace import Record
from bilateral_benchmarks.load.windows import Measurement, SteadyState
from bilateral_benchmarks.report.context import Context
from bilateral_export.errors import UserError
from bilateral_export.runners.base import Runner
from bilateral_export.tensors import Array


def bench_runner(
    runner: Runner,
    arrays: Mapping[str, Array],
    *,
    duration_s: float = 9.0,
    warmup_s: float = 2.0,
    concurrency: int = 1,
    max_duration_s: float | None = None,
    subject: str | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Measure the latency and throughput of a runner that is open already.

    Args:
        runner: The model on one runtime, inside its `with` block.
        arrays: One call's input: an array per name, the batch along the first axis.
        duration_s: Length of the measurement.
        warmup_s: Least length of the warm-up before it.
        concurrency: Threads that call the runner, each when its last call has returned.
        max_duration_s: Measure up to so long where the windows do not agree.
        subject: What is measured. Default: the runner's name.
        on_progress: Called about ten times a second.

    Raises:
        UserError: The arrays do not fit, or the runner does not answer as it declares.
    """
    # A refusal belongs here, not into a thread.
    outputs = runner.run(arrays)
    expected = first_answer(runner.name, runner.inputs, arrays, runner.outputs, outputs)
    load = Load(concurrency=concurrency)
    plan = Plan.lasting(duration_s, warmup_s, max_duration_s)
    context = Context.now()
    measurement, failure = _measure(runner, arrays, expected, load, plan, on_progress)
    if not len(measurement.trace):
        raise UserError(
            f"{runner.name} did not finish a call within {duration_s:g} s",
            "Measure for longer (--duration).",
        )
    outcome = Outcome(measurement, GeneratorHealth(pauses_s=(), overrun=False, failure=failure))
    return summarise("runner", subject or runner.name, arrays, load, plan, outcome, context)


def _measure(
    runner: Runner,
    arrays: Mapping[str, Array],
    expected: Expected,
    load: Load,
    plan: Plan,
    on_progress: OnProgress | None,
) -> tuple[Measurement, str | None]:
    """Return the measurement, and why the first call that failed did."""
    completed: list[Record] = []  # list.append is atomic
    wrong: list[str] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def caller() -> None:
        try:
            while not over.is_set():
                sent = time.monotonic()
                outputs = runner.run(arrays)
                done = time.monotonic()
                problem = expected.difference(outputs)
                completed.append(Record(sent, sent, done, problem is None))
                if problem:
                    wrong.append(problem)
        except BaseException as error:
            failures.append(error)
            over.set()

    steady_state = SteadyState(plan, time.monotonic(), closed=True)
    threads = [threading.Thread(target=caller, daemon=True) for _ in range(load.concurrency)]
    for thread in threads:
        thread.start()
    seen = 0
    try:
        while not over.wait(TICK_S):
            now = time.monotonic()
            new = completed[seen:]
            seen += len(new)
            if steady_state.feed(new, now):
                over.set()
            if on_progress:
                on_progress(*steady_state.progress)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    steady_state.feed(completed[seen:], time.monotonic())
    return steady_state.measurement(), wrong[0] if wrong else None
