"""The result of one measurement: what `bilateral bench` prints, and its JSON."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bilateral_benchmarks.load.run import Outcome
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.report.machine import Machine, git_revision
from bilateral_benchmarks.statistics.distribution import Distribution
from bilateral_export.tensors import Array

SCHEMA_VERSION = 1
# A schedule is kept when 99 of 100 requests are late by less than this, or than a tenth of the
# median service time where that is longer.
LATENESS_BOUND_MS = 1.0
LATENESS_SHARE = 0.1
# A pause of this length is no scheduling delay: the process was stopped or starved.
PAUSE_BOUND_MS = 100.0


class Context(BaseModel):
    """Where, when and how a report was made."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    command: str
    git_revision: str | None
    started: str

    @staticmethod
    def now() -> Context:
        """Of this process, at this moment."""
        return Context(
            machine=Machine.here(),
            command=" ".join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
            git_revision=git_revision(),
            started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def _program(path: Path) -> str:
    """What a person types to start the program at `path`."""
    if path.parts[-2:] == ("bilateral_cli", "__main__.py"):  # python -m bilateral_cli
        return "bilateral"
    return path.name or "python"


class WindowRow(BaseModel):
    """One window of the measurement; no median where nothing was answered."""

    model_config = ConfigDict(frozen=True)

    median_ms: float | None
    throughput: float


class Report(BaseModel):
    """One measurement.

    Attributes:
        kind: A runner in this process, or a served model.
        subject: The runner's name, or the model's and the server's.
        batch: Items per request.
        shapes: Of the inputs, by name.
        requests: Sent within the measurement, answered or not.
        errors: Not answered.
        first_error: Why the first of them failed.
        throughput: Answered requests per second.
        items_per_s: The same times the batch.
        response: From the intended send time to the answer.
        service: From the actual send time to the answer; in a closed loop the same.
        lateness: From the intended to the actual send time; open loop only.
        longest_pause_ms: Of the generator's heartbeat; None for a runner in process.
        stable: Whether warm-up and windows agreed.
        valid: Whether the generator kept its schedule and requests succeeded.
        problems: What speaks against the numbers, in words.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    kind: Literal["runner", "served"]
    subject: str
    batch: int
    shapes: dict[str, tuple[int, ...]]
    load: Load
    plan: Plan
    warmup_s: float
    duration_s: float
    requests: int
    errors: int
    first_error: str | None = None
    throughput: float
    items_per_s: float
    response: Distribution
    service: Distribution
    lateness: Distribution | None = None
    longest_pause_ms: float | None = None
    windows: tuple[WindowRow, ...]
    stable: bool
    valid: bool
    problems: tuple[str, ...] = Field(default=())
    context: Context

    @property
    def doubts(self) -> tuple[str, ...]:
        """The problems, each marked as making the numbers invalid or only unstable."""
        mark = "unstable" if self.valid else "INVALID"
        return tuple(f"{mark}: {problem}" for problem in self.problems)

    @property
    def p50_ms(self) -> float | None:
        """Median response time; None where the sample cannot support it."""
        return self.response.at(50.0)

    @property
    def p90_ms(self) -> float | None:
        """90th percentile of the response time; None where the sample cannot support it."""
        return self.response.at(90.0)

    @property
    def p95_ms(self) -> float | None:
        """95th percentile of the response time; None where the sample cannot support it."""
        return self.response.at(95.0)

    @property
    def p99_ms(self) -> float | None:
        """99th percentile of the response time; None where the sample cannot support it."""
        return self.response.at(99.0)


def summarise(
    kind: Literal["runner", "served"],
    subject: str,
    arrays: Mapping[str, Array],
    load: Load,
    plan: Plan,
    outcome: Outcome,
    context: Context,
) -> Report:
    """Turn an outcome into a report, with every reason to doubt it."""
    measured = outcome.measurement
    answered = measured.trace.answered()
    errors = len(measured.trace) - len(answered)
    response, service = Distribution.of(answered.response), Distribution.of(answered.service)
    lateness = None if load.rate is None else Distribution.of(measured.trace.lateness)
    pauses = outcome.conduct.pauses_s
    longest = 1e3 * max(pauses) if pauses else None

    invalid = []
    if errors:
        reason = " ".join((outcome.conduct.failure or "").split())
        invalid.append(f"{errors} of {len(measured.trace)} requests failed: {reason[:120]}")
    if lateness is not None:
        late = lateness.at(99.0)
        late = lateness.max_ms if late is None else late
        bound = max(LATENESS_BOUND_MS, LATENESS_SHARE * (service.at(50.0) or 0.0))
        if late > bound:
            invalid.append(
                f"the generator was late: p99 of the send delay {late:.2f} ms, bound {bound:.2f} ms"
            )
    if longest is not None and longest > PAUSE_BOUND_MS:
        invalid.append(f"the generator itself stood still for {longest:.0f} ms")
    unstable = []
    if not measured.warm:
        unstable.append("warm-up did not become steady")
    if not measured.stable:
        unstable.append(f"the windows differ by more than {plan.bound:.0%}")

    batch = max((array.shape[0] if array.ndim else 1 for array in arrays.values()), default=1)
    return Report(
        kind=kind,
        subject=subject,
        batch=batch,
        shapes={name: array.shape for name, array in arrays.items()},
        load=load,
        plan=plan,
        warmup_s=measured.warmup_s,
        duration_s=measured.windows[-1].end - measured.windows[0].start,
        requests=len(measured.trace),
        errors=errors,
        first_error=outcome.conduct.failure if errors else None,
        throughput=measured.throughput,
        items_per_s=measured.throughput * batch,
        response=response,
        service=service,
        lateness=lateness,
        longest_pause_ms=longest,
        windows=tuple(
            WindowRow(
                median_ms=1e3 * window.median_s if window.answered else None,
                throughput=window.throughput,
            )
            for window in measured.windows
        ),
        stable=not unstable,
        valid=not invalid,
        problems=(*invalid, *unstable),
        context=context,
    )
