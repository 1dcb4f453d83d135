"""Serving overhead: a model under several server settings and in process, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.in_process import bench_runner
from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.load.request import is_shared
from bilateral_benchmarks.load.run import RunFailedError
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Bar, Plot, bar_plot
from bilateral_benchmarks.report.result import Quantity, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.interleave import ratio_of
from bilateral_benchmarks.statistics.percentiles import percentile
from bilateral_export.errors import UserError
from bilateral_export.runners.base import Runner
from bilateral_export.tensors import Array

SATURATION = 8
Matrix = NDArray[np.float64]


class Served(BaseModel):
    """One way to serve the model.

    Attributes:
        p50_ms: Median over the rounds, one caller.
        overhead_ms: The same less the in-process median, paired by round.
        throughput: Items per second with SATURATION callers, median over the rounds.
        share: Of the in-process throughput, paired by round.
        share_low: Lower end of its 95% interval; None with fewer than six rounds.
        share_high: Upper end.
        p50_low_ms: Lower end of the 95% interval of `p50_ms`; None in older files, too.
        p50_high_ms: Upper end.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    p50_ms: float
    overhead_ms: float
    throughput: float
    share: float
    share_low: float | None
    share_high: float | None
    p50_low_ms: float | None = None
    p50_high_ms: float | None = None


class Overhead(Result):
    """Each way to serve, against the same file in process."""

    kind: Literal["overhead"] = "overhead"
    subject: str
    rounds: int
    in_process_p50_ms: float
    in_process_throughput: float
    ways: tuple[Served, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return a row for each setting of the server."""
        rows = [
            (
                "in process",
                number(self.in_process_p50_ms),
                "",
                number(self.in_process_throughput),
                "1",
                "",
            )
        ]
        rows += [
            (
                way.name,
                number(way.p50_ms),
                f"{way.overhead_ms:+.2f}",
                number(way.throughput),
                f"{way.share:.2f}",
                between(way.share_low, way.share_high),
            )
            for way in self.ways
        ]
        columns = ("", ">p50 ms", ">overhead ms", ">items/s", ">of in-process", ">95% interval")
        return [Table(f"Serving overhead: {self.subject}", columns, tuple(rows))]

    def quantities(self) -> list[Quantity]:
        """Return the latency of each way, and its share of the in-process throughput."""
        found = []
        for way in self.ways:
            name = f"{self.subject}, {way.name}"
            ends = way.p50_low_ms, way.p50_high_ms
            found.append(Quantity(name, "p50, ms", way.p50_ms, *ends, self.context))
            ends = way.share_low, way.share_high
            measure = "items/s, of in process"
            found.append(
                Quantity(name, measure, way.share, *ends, self.context, more_is_better=True)
            )
        return found

    def plots(self) -> list[Plot]:
        """Return the median latencies."""
        bars = [Bar("in process", [self.in_process_p50_ms])]
        bars += [Bar(way.name, [way.p50_ms]) for way in self.ways]
        return [Plot("Median latency of one caller", bar_plot(bars, [], "ms"))]


def measure_overhead(
    url: str,
    subject: str,
    models: Mapping[str, str],
    runner: Runner,
    arrays: Mapping[str, Array],
    *,
    rounds: int = 6,
    seconds: float = 1.5,
    on_step: Callable[[str], None] | None = None,
) -> Overhead:
    """Measure latency with one caller and throughput with several, in process and served.

    Large inputs go through shared memory, as `Client` sends them to this machine; the first model
    is then measured with its inputs inside the message too.

    Args:
        url: "host:port" of a server that serves every model.
        subject: What is measured.
        models: The model's name on the server, by what its settings are called.
        runner: The same file in this process, open.
        arrays: One request.
        rounds: How often everything is measured, interleaved.
        seconds: Of one measurement.
        on_step: Called with what is being done.

    Raises:
        RunFailedError: A request failed.
        UserError: A measurement has too few requests.
    """
    context = Context.now()
    ways: dict[str, tuple[str, bool | None]] = {way: (name, None) for way, name in models.items()}
    first = next(iter(models))
    if is_shared(url, arrays, None):
        ways[f"{first}, inputs in the message"] = (models[first], False)
    names = ["in process", *ways]
    latency = np.empty((len(names), rounds))
    throughput = np.empty((len(names), rounds))
    for index in range(rounds):
        for turn in range(len(names)):
            row = (turn + index) % len(names)
            name = names[row]
            if on_step:
                on_step(f"round {index + 1} of {rounds}, {name}")
            for table, callers in ((latency, 1), (throughput, SATURATION)):
                if row == 0:
                    report = bench_runner(
                        runner,
                        arrays,
                        duration_s=seconds,
                        warmup_s=seconds / 5,
                        concurrency=min(callers, 2),
                    )
                else:
                    model, shared = ways[name]
                    report = bench_served(
                        url,
                        model,
                        arrays,
                        shared_memory=shared,
                        duration_s=seconds,
                        warmup_s=seconds / 5,
                        concurrency=callers,
                    )
                if report.errors:
                    raise RunFailedError(f"{name}: {report.problems[0]}", "Nothing was measured.")
                value = report.items_per_s if callers > 1 else report.response.at(50.0)
                if value is None:
                    raise UserError(
                        f"{name}: too few requests in {seconds:g} s for a median",
                        "Measure for longer.",
                    )
                table[row, index] = value
    return Overhead(
        subject=subject,
        rounds=rounds,
        in_process_p50_ms=float(np.median(latency[0])),
        in_process_throughput=float(np.median(throughput[0])),
        ways=tuple(_way(names, row, latency, throughput) for row in range(1, len(names))),
        context=context,
    )


def _way(names: Sequence[str], row: int, latency: Matrix, throughput: Matrix) -> Served:
    share = ratio_of(throughput[row] / throughput[0])
    median = percentile(latency[row] / 1e3, 50.0)
    return Served(
        name=names[row],
        p50_ms=float(np.median(latency[row])),
        overhead_ms=float(np.median(latency[row] - latency[0])),
        throughput=float(np.median(throughput[row])),
        share=share.value,
        share_low=share.low,
        share_high=share.high,
        p50_low_ms=median.low_ms,
        p50_high_ms=median.high_ms,
    )
