"""MLPerf Inference's four scenarios (Reddi et al., 2020), for a served model.

SingleStream: one query at a time; the result is the p90 latency.
MultiStream: one query of eight samples at a time; the result is the p99 latency of the query.
Server: Poisson arrivals; the result is the highest rate at which the p99 latency holds a bound.
Offline: all samples at once, as many in flight as it takes; the result is samples per second.

Only the arrivals and the metrics are MLPerf's: no accuracy run, no prescribed model or duration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.load import Load
from bilateral_benchmarks.report import Report
from bilateral_benchmarks.run import OnProgress, OverloadedError
from bilateral_benchmarks.served import bench_served
from bilateral_export.errors import UserError
from bilateral_export.tensors import Array

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

MULTISTREAM_SAMPLES = 8
OFFLINE_IN_FLIGHT = 4
# The search ends when the rate is known to within this ratio.
RATE_RESOLUTION = 1.05
# A p99 needs 368 requests to be said at all; twice that to say it with an upper limit, mostly.
_REQUESTS_PER_PROBE = 800


class Probe(BaseModel):
    """One rate tried in the search of the Server scenario."""

    model_config = ConfigDict(frozen=True)

    rate: float
    p99_ms: float | None
    held: bool
    why: str


class ScenarioResult(BaseModel):
    """The result of one scenario.

    Attributes:
        metric: What `value` is, with its unit.
        value: The result; None where no rate held the bound or the percentile is not supported.
        bound_ms: Of the p99 latency; Server only.
        report: The run that gave the result; None where none did.
        probes: The rates tried; Server only.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["scenario"] = "scenario"
    scenario: Scenario
    metric: str
    value: float | None
    bound_ms: float | None = None
    report: Report | None
    probes: tuple[Probe, ...] = ()


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
    on_progress: OnProgress | None = None,
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
        on_progress: Called about ten times a second.

    Raises:
        UserError: The server or the model is not there or refuses the inputs.
    """

    def measure(samples: int, load: Load, seconds: float = duration_s) -> Report:
        arrays = {name: np.repeat(array, samples, axis=0) for name, array in sample.items()}
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
        return _result(scenario, "p90 latency, ms", report.p90_ms, report)
    if scenario == "MultiStream":
        report = measure(MULTISTREAM_SAMPLES, Load())
        metric = f"p99 latency of {MULTISTREAM_SAMPLES} samples, ms"
        return _result(scenario, metric, report.p99_ms, report)
    if scenario == "Offline":
        report = measure(max_batch, Load(concurrency=OFFLINE_IN_FLIGHT))
        return _result(scenario, "samples/s", report.items_per_s, report)

    def at_rate(rate: float) -> Report:
        return measure(1, Load(rate=rate), max(duration_s, _REQUESTS_PER_PROBE / rate))

    first = measure(1, Load(concurrency=2)).throughput / 2
    best, probes = highest_rate(at_rate, first, bound_ms)
    value = best.load.rate if best else None
    metric = f"requests/s with p99 latency at most {bound_ms:g} ms"
    return ScenarioResult(
        scenario=scenario,
        metric=metric,
        value=value,
        bound_ms=bound_ms,
        report=best,
        probes=probes,
    )


def highest_rate(
    measure: Callable[[float], Report], first: float, bound_ms: float
) -> tuple[Report | None, tuple[Probe, ...]]:
    """Search the highest rate whose p99 response time is within `bound_ms`.

    Doubles or halves from `first` until one rate holds and a higher one does not, then bisects
    geometrically. Assumes that a higher rate is never faster.

    Returns:
        The report of the highest rate that held (None: none down to 1/64 of `first`), and every
        rate tried, in order.
    """
    probes: list[Probe] = []

    def holds(rate: float) -> Report | None:
        try:
            report = measure(rate)
        except OverloadedError:
            probes.append(Probe(rate=rate, p99_ms=None, held=False, why="overloaded"))
            return None
        within = report.p99_ms is not None and report.p99_ms <= bound_ms
        held = within and report.valid
        why = "held" if held else "p99 over the bound" if not within else report.problems[0]
        probes.append(Probe(rate=rate, p99_ms=report.p99_ms, held=held, why=why))
        return report if held else None

    low, high = first, first
    best = holds(first)
    if best:
        while (report := holds(high := 2 * high)) is not None:
            best, low = report, high
    else:
        while best is None and low > first / 64:
            high, low = low, low / 2
            best = holds(low)
    if best is None:
        return None, tuple(probes)
    while high / low > RATE_RESOLUTION:
        middle = (low * high) ** 0.5
        report = holds(middle)
        if report is None:
            high = middle
        else:
            best, low = report, middle
    return best, tuple(probes)


def named_scenario(name: str) -> Scenario:
    """The scenario of that name, in any case.

    Raises:
        UserError: There is none.
    """
    for scenario in SCENARIOS:
        if scenario.lower() == name.lower():
            return scenario
    raise UserError(f"unknown scenario '{name}'", f"Use one of {', '.join(SCENARIOS)}.")


def _result(scenario: Scenario, metric: str, value: float | None, report: Report) -> ScenarioResult:
    return ScenarioResult(scenario=scenario, metric=metric, value=value, report=report)
