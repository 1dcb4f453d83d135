"""The generator's limit: requests a second that one process sends on time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from bilateral_benchmarks.experiments.contenders import checkpoint_of
from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.load.rate_search import RATE_RESOLUTION, Probe, highest_rate
from bilateral_benchmarks.load.report import Report, cdf_plots
from bilateral_benchmarks.load.schedule import Load
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Plot
from bilateral_benchmarks.report.result import Quantity, Result
from bilateral_benchmarks.report.tables import Table
from bilateral_export.graph.export import export_onnx
from bilateral_export.tensors import Array
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

TINY_MODEL = "digits_bilateral"
BOUND_MS = 1.0
FIRST_RATE = 1000.0


class GeneratorLimit(Result):
    """The highest rate that was sent on time.

    Attributes:
        subject: What it was sent to.
        bound_ms: What the p99 of the send delay must not exceed.
        rate: Requests per second; None where no rate was sent on time.
        probes: The rates tried, with the p99 of their send delay.
        report: The run at that rate.
    """

    kind: Literal["limit"] = "limit"
    subject: str
    bound_ms: float = BOUND_MS
    rate: float | None
    probes: tuple[Probe, ...]
    report: Report | None

    def tables(self) -> list[Table]:
        """Return the highest rate that one process sent on time, and the rates tried."""
        value = "none" if self.rate is None else f"{self.rate:.0f}"
        metric = f"requests/s with a p99 send delay of at most {self.bound_ms:g} ms"
        rows = ((metric, value, ""), *(probe.cells() for probe in self.probes))
        return [
            Table(f"The generator's limit, one process: {self.subject}", ("", ">value", ""), rows)
        ]

    def plots(self) -> list[Plot]:
        """Return the latency's distribution at the highest rate."""
        return cdf_plots([self.report]) if self.report else []

    def quantities(self) -> list[Quantity]:
        """Return the rate, which is known to the ratio of two rates of the search."""
        context = self.where()
        if not self.rate or context is None:
            return []
        low, high = self.rate / RATE_RESOLUTION, self.rate * RATE_RESOLUTION
        return [
            Quantity(
                f"The generator's limit, {self.subject.partition(' at ')[0]}",
                "requests/s",
                self.rate,
                low,
                high,
                context,
                more_is_better=True,
            )
        ]

    def where(self) -> Context | None:
        """Return the context; that of the report in older files."""
        return self.context or (self.report.context if self.report else None)


def limit_on_this_machine(
    *, duration_s: float = 3.0, on_step: Callable[[str], None] | None = None
) -> GeneratorLimit:
    """Serve the trained digits model in one thread on this machine, and measure against it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported = folder / "digits.onnx"
        export_onnx(checkpoint_of(TINY_MODEL, folder, None), exported)
        repository.add("digits", exported, folder / "models", settings=Settings(threads=1))
        options = ServerOptions(
            folder / "models", grpc_port=free_port(), metrics_port=None, direct=True
        )
        with running(options) as server:
            with Client(server.url) as client:
                arrays = made_up(client.model_metadata("digits").inputs)
            return measure_limit(
                server.url, "digits", arrays, duration_s=duration_s, on_step=on_step
            )


def measure_limit(
    url: str,
    model: str,
    arrays: Mapping[str, Array],
    *,
    duration_s: float = 3.0,
    first: float = FIRST_RATE,
    on_step: Callable[[str], None] | None = None,
) -> GeneratorLimit:
    """Search the highest rate at which the p99 of the send delay is within BOUND_MS.

    The server's part in it: it must leave the generator a core, so the model should be tiny and run
    in one thread. A rate that was missed is tried once more, because what else the machine does
    makes requests late, but none early.

    Args:
        url: "host:port" of the gRPC service.
        model: The served model's name.
        arrays: One request.
        duration_s: Of each measurement.
        first: The rate to begin with, in requests per second.
        on_step: Called with what is being done.

    Raises:
        UserError: The server or the model is not there or refuses the inputs.
    """
    context = Context.now()

    def at(rate: float) -> Report:
        if on_step:
            on_step(f"generator at {rate:.0f} requests/s")
        return bench_served(
            url, model, arrays, duration_s=duration_s, warmup_s=0.5, load=Load(rate=rate)
        )

    def at_best(rate: float) -> Report:
        report = at(rate)
        return report if judge(report)[1] is None else at(rate)

    best, probes = highest_rate(at_best, first, judge)
    return GeneratorLimit(
        subject=f"{model} at {url}",
        rate=best.load.rate if best else None,
        probes=probes,
        report=best,
        context=context,
    )


def judge(report: Report) -> tuple[float | None, str | None]:
    """Return the p99 of the send delay, and why the rate was not kept; None if it was."""
    assert report.lateness is not None
    late = report.lateness.at(99.0)
    if report.errors:
        return late, report.problems[0]
    if late is None:
        return late, "too few requests to say"
    return late, None if late <= BOUND_MS else "p99 of the send delay over the bound"
