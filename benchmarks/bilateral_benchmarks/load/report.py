"""The report of one load test: distributions, windows, and every reason to doubt them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bilateral_benchmarks.load.run import Outcome
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Line, Plot, line_plot
from bilateral_benchmarks.report.result import Latency, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.distribution import Distribution
from bilateral_export.tensors import Array

# A schedule is kept when 99 of 100 requests are late by less than this, or than a tenth of the
# median service time where that is longer.
LATENESS_BOUND_MS = 1.0
LATENESS_SHARE = 0.1
# A pause of this length is not a scheduling delay: the process was stopped or starved.
PAUSE_BOUND_MS = 100.0


# The CDF is drawn up to here; what lies beyond is in the table, with its interval.
_PERCENTS = np.concatenate([np.arange(0.0, 99.0, 1.0), np.arange(99.0, 99.95, 0.1)])
# As many as the legend has room for.
_CURVES = 16


class WindowRow(BaseModel):
    """One window of the measurement; no median where nothing was answered."""

    model_config = ConfigDict(frozen=True)

    median_ms: float | None
    throughput: float


class Report(Result):
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

    def tables(self) -> list[Table]:
        """Return the percentiles with their intervals."""
        rows = []
        kinds = [("response", self.response)]
        if self.lateness is not None:
            kinds += [("service", self.service), ("send delay", self.lateness)]
        for kind, latency in kinds:
            for percentile in latency.percentiles:
                if percentile.value_ms is None:
                    value, interval = "-", f"needs {percentile.needed:,} requests"
                else:
                    value = number(percentile.value_ms)
                    interval = between(percentile.low_ms, percentile.high_ms)
                rows.append((kind, f"p{percentile.percent:g}", value, interval))
            rows.append((kind, "mean", number(latency.mean_ms), f"sd {number(latency.std_ms)}"))
            rows.append((kind, "max", number(latency.max_ms), ""))
        title = (
            f"{self.subject}, batch {self.batch}, {self.load}: "
            f"{self.throughput:.1f} requests/s, {self.requests:,} requests"
        )
        return [Table(title, ("latency", "", ">ms", ">95% interval"), tuple(rows), self.doubts)]

    def plots(self) -> list[Plot]:
        """Return the latency's distribution."""
        return cdf_plots([self])

    def latencies(self) -> list[Latency]:
        """Return the response time."""
        return [self.latency("", "")]

    def latency(self, before: str, after: str) -> Latency:
        """Return the response time, its name between two texts that say more of the run."""
        # The server's address may differ between runs.
        name = f"{self.subject.partition(' at ')[0]}, batch {self.batch}, {self.load}"
        return Latency(
            f"{before}{name}{after}",
            self.response.percentiles,
            self.context,
            tuple(sorted(self.shapes.items())),
            self.doubts,
            self.valid,
        )

    def invalid(self) -> list[str]:
        """Return why the run does not count; nothing where it does."""
        return [] if self.valid else [f"{self.subject}, {self.load}: {self.problems[0]}"]

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
    pauses = outcome.health.pauses_s
    longest = 1e3 * max(pauses) if pauses else None

    invalid = []
    if errors:
        reason = " ".join((outcome.health.failure or "").split())
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
        first_error=outcome.health.failure if errors else None,
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


def cdf_plots(reports: Sequence[Report], names: Sequence[str] = ()) -> list[Plot]:
    """Return one plot of all distributions.

    Args:
        reports: Whose response times are drawn.
        names: What differs between them. Default: their load.
    """
    if not reports:
        return []
    lines = []
    named = zip(reports, names or [str(report.load) for report in reports], strict=True)
    for report, name in itertools.islice(named, _CURVES):
        values = report.response.curve(_PERCENTS)
        lines.append(Line(name[:28], values.tolist(), _PERCENTS.tolist()))
    drawn = line_plot(lines, "response time, ms (logarithmic)", "percent of requests", log_x=True)
    return [Plot("Latency distribution, up to p99.9", drawn)]
