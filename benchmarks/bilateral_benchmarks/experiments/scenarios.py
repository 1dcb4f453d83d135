"""MLPerf Inference's four scenarios (Reddi et al., 2020), for a served model.

SingleStream: one query at a time; the result is the p90 latency.
MultiStream: one query of eight samples at a time; the result is the p99 latency of the query.
Server: Poisson arrivals; the result is the highest rate at which the p99 latency holds a bound.
The search tries no further rate after two and a half minutes.
Offline: all samples at once, as many in flight as it takes; the result is samples per second.

Only the arrivals and the metrics are MLPerf's: no accuracy run, no prescribed model or duration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.load.rate_search import Judge, Probe, highest_rate
from bilateral_benchmarks.load.report import LATENESS_SHARE, PAUSE_BOUND_MS, Report, cdf_plots
from bilateral_benchmarks.load.run import OnProgress, RunFailedError
from bilateral_benchmarks.load.schedule import Load, require_positive
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Plot
from bilateral_benchmarks.report.result import Latency, Quantity, Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_export.errors import UserError
from bilateral_export.tensors import Array

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

MULTISTREAM_SAMPLES = 8
OFFLINE_IN_FLIGHT = 4
# A p99 needs 368 requests to be said at all. Near capacity requests wait for each other, and it
# takes more: with 1000, the rate found for a queue of constant service times is good to about 14 %.
_REQUESTS_FOR_P99 = 400
_REQUESTS_PER_PROBE = 1000
SERVER_RESOLUTION = 0.14
# Neither makes a measurement last longer.
_LONGEST_S = 45.0
# After so long the search for a rate ends with what it has.
SEARCH_S = 150.0


class ScenarioResult(Result):
    """The result of one scenario.

    Attributes:
        metric: What `value` is, with its unit.
        value: The result; None where no rate held the bound or the percentile is not supported.
        bound_ms: Of the p99 latency; Server only.
        report: The run that gave the result; None where none did.
        probes: The rates tried; Server only.
    """

    kind: Literal["scenario"] = "scenario"
    scenario: Scenario
    metric: str
    value: float | None
    bound_ms: float | None = None
    report: Report | None
    probes: tuple[Probe, ...] = ()

    def tables(self) -> list[Table]:
        """Return the result, and the rates tried."""
        value = "none" if self.value is None else number(self.value)
        rows = ((self.metric, value, ""), *(probe.cells() for probe in self.probes))
        subject = f": {self.report.subject}" if self.report else ""
        notes = self.report.doubts if self.report else ()
        return [Table(f"{self.scenario}{subject}", ("", ">value", ""), rows, notes)]

    def plots(self) -> list[Plot]:
        """Return the latency's distribution."""
        return cdf_plots([self.report]) if self.report else []

    def latencies(self) -> list[Latency]:
        """Return the latency; that of Server depends on the rate that was found."""
        report = self._judged
        return [report.latency(f"{self.scenario}, ", "")] if report else []

    def quantities(self) -> list[Quantity]:
        """Return the latency; of Server the rate, which is good to SERVER_RESOLUTION."""
        if self.scenario != "Server":
            return super().quantities()
        if not self.value or self.report is None:
            return []
        return [
            Quantity(
                f"Server, {self.report.subject.partition(' at ')[0]}",
                self.metric,
                self.value,
                (1 - SERVER_RESOLUTION) * self.value,
                (1 + SERVER_RESOLUTION) * self.value,
                self.report.context,
                more_is_better=True,
                shapes=tuple(sorted(self.report.shapes.items())),
            )
        ]

    def invalid(self) -> list[str]:
        """Return why the run does not count.

        The Server scenario judges lateness by its own bound, so of its run only failed requests
        count.
        """
        return self._judged.invalid() if self._judged else []

    def where(self) -> Context | None:
        """Return the context; that of the report in older files."""
        return self.context or (self.report.context if self.report else None)

    @property
    def _judged(self) -> Report | None:
        return None if self.scenario == "Server" else self.report


def run_scenario(
    scenario: Scenario,
    url: str,
    model: str,
    sample: Mapping[str, Array],
    *,
    duration_s: float = 9.0,
    warmup_s: float = 2.0,
    bound_ms: float = 50.0,
    max_batch: int = 8,
    search_s: float = SEARCH_S,
    on_progress: OnProgress | None = None,
    on_measurement: Callable[[str, float], None] | None = None,
) -> ScenarioResult:
    """Run one scenario.

    Args:
        scenario: Its name.
        url: "host:port" of the gRPC service.
        model: The served model's name.
        sample: One sample: inputs with a batch of 1.
        duration_s: Length of each measurement.
        warmup_s: Warm-up before each.
        bound_ms: Server: what the p99 latency must not exceed.
        max_batch: Offline: samples in one request.
        search_s: Server: seconds after which no further rate is tried.
        on_progress: Called about ten times a second.
        on_measurement: Called before each measurement with its load and its planned seconds.

    Raises:
        UserError: The server or the model is not there or refuses the inputs, or the bound is not
            a positive number.
        RunFailedError: Server: a request failed that had the server for itself.
    """
    require_positive(bound_ms, f"a bound of {bound_ms:g} ms")
    context = Context.now()

    def measure(samples: int, load: Load, seconds: float = duration_s) -> Report:
        arrays = {name: np.repeat(array, samples, axis=0) for name, array in sample.items()}
        if on_measurement:
            on_measurement(str(load), seconds + warmup_s)
        return bench_served(
            url,
            model,
            arrays,
            duration_s=seconds,
            warmup_s=warmup_s,
            load=load,
            on_progress=on_progress,
        )

    if scenario == "SingleStream":
        report = measure(1, Load())
        return _result(scenario, "p90 latency, ms", report.p90_ms, report, context)
    if scenario == "MultiStream":
        report = measure(MULTISTREAM_SAMPLES, Load())
        needed_s = _REQUESTS_FOR_P99 / report.throughput
        if report.p99_ms is None and needed_s <= _LONGEST_S:
            report = measure(MULTISTREAM_SAMPLES, Load(), needed_s)
        metric = f"p99 latency of {MULTISTREAM_SAMPLES} samples, ms"
        return _result(scenario, metric, report.p99_ms, report, context)
    if scenario == "Offline":
        report = measure(max_batch, Load(concurrency=OFFLINE_IN_FLIGHT))
        return _result(scenario, "samples/s", report.items_per_s, report, context)

    def at_rate(rate: float) -> Report:
        seconds = max(duration_s, _REQUESTS_PER_PROBE / rate)
        seconds = min(seconds, max(duration_s, _LONGEST_S))
        report = measure(1, Load(rate=rate), seconds)
        # What the generator could not send on time says nothing of the server.
        return report if kept_schedule(report, bound_ms) else measure(1, Load(rate=rate), seconds)

    alone = measure(1, Load())
    if alone.errors:
        raise RunFailedError(f"one caller alone: {alone.problems[0]}", "No rate was tried.")
    best: Report | None = None
    probes: tuple[Probe, ...] = ()
    # No rate can be answered faster than one request at a time.
    if (alone.p50_ms or 0.0) <= bound_ms:
        first = measure(1, Load(concurrency=2)).throughput / 2
        best, probes = highest_rate(at_rate, first, within(bound_ms), budget_s=search_s)
    value = best.load.rate if best else None
    metric = f"requests/s with p99 latency at most {bound_ms:g} ms"
    return ScenarioResult(
        scenario=scenario,
        metric=metric,
        value=value,
        bound_ms=bound_ms,
        report=best,
        probes=probes,
        context=context,
    )


def within(bound_ms: float) -> Judge:
    """Judges a run of the Server scenario: a p99 response time of at most `bound_ms`."""

    def judge(report: Report) -> tuple[float | None, str | None]:
        p99 = report.p99_ms
        if p99 is None:
            return None, "too few requests to say"
        if p99 > bound_ms:
            return p99, "p99 over the bound"
        return p99, None if kept_schedule(report, bound_ms) else report.problems[0]

    return judge


def kept_schedule(report: Report, bound_ms: float) -> bool:
    """Return whether a run of Server counts: valid, or late by at most a tenth of the bound.

    Response times count from the schedule, so a late generator makes them longer, and the rate that
    is found lower. One that stood still, or lost requests, is not excused.
    """
    late = report.lateness.at(99.0) if report.lateness else None
    stood_still = (report.longest_pause_ms or 0.0) > PAUSE_BOUND_MS
    excused = late is not None and late <= LATENESS_SHARE * bound_ms
    return report.valid or (excused and not report.errors and not stood_still)


def named_scenario(name: str) -> Scenario:
    """Return the scenario of that name, in any case.

    Raises:
        UserError: There is none.
    """
    for scenario in SCENARIOS:
        if scenario.lower() == name.lower():
            return scenario
    raise UserError(f"unknown scenario '{name}'", f"Use one of {', '.join(SCENARIOS)}.")


def _result(
    scenario: Scenario, metric: str, value: float | None, report: Report, context: Context
) -> ScenarioResult:
    return ScenarioResult(
        scenario=scenario, metric=metric, value=value, report=report, context=context
    )
