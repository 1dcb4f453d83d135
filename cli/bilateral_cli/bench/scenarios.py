"""`bilateral bench scenario`, `limit`, `sweep` and `breakdown`: experiments on a served model."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment, measurements, one_measurement
from bilateral_cli.bench.options import (
    BatchOption,
    DurationOption,
    LengthOption,
    OutputOption,
    WarmupOption,
)
from bilateral_cli.bench.output import finish
from bilateral_cli.console import DEFAULT_URL, JsonOption, UrlOption
from bilateral_cli.options import numbers
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from bilateral_benchmarks.load.report import Report
    from bilateral_export.tensors import Array


@bench.command()
def scenario(
    which: Annotated[str, typer.Argument(help="SingleStream, MultiStream, Server or Offline.")],
    name: Annotated[str, typer.Argument(help="The served model.")],
    url: UrlOption = DEFAULT_URL,
    bound: Annotated[
        float, typer.Option(help="Server: what the p99 latency must not exceed, in ms.")
    ] = 50.0,
    duration: DurationOption = 9.0,
    warmup: WarmupOption = 2.0,
    length: LengthOption = 128,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Run one of MLPerf's scenarios on a served model.

    Example: bilateral bench scenario Server digits --bound 20
    """
    from bilateral_benchmarks.experiments.scenarios import named_scenario, run_scenario
    from bilateral_benchmarks.load.inputs import made_up
    from bilateral_serving.client import Client

    chosen = named_scenario(which)
    with Client(url) as client:
        info = client.model_metadata(name)
    with measurements() as (begin, on_progress):
        result = run_scenario(
            chosen,
            url,
            name,
            made_up(info.inputs, 1, length),
            duration_s=duration,
            warmup_s=warmup,
            bound_ms=bound,
            max_batch=max(1, info.max_batch_size),
            on_progress=on_progress,
            on_measurement=lambda load, seconds: begin(f"{chosen}, {name}: {load}", seconds),
        )
    finish(result, f"{chosen}: {name}", output, json)


@bench.command()
def limit(
    duration: Annotated[
        float, typer.Option("--duration", metavar="SECONDS", help="Of each measurement.")
    ] = 3.0,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Find how many requests a second one generating process sends on time.

    It starts a server with the small digits model. On time: a p99 send delay of at most 1 ms.

    Example: bilateral bench limit
    """
    from bilateral_benchmarks.experiments.generator_limit import limit_on_this_machine

    with experiment() as shown:
        found = limit_on_this_machine(duration_s=duration, on_step=shown.step)
    finish(found, "The generator's limit", output, json)


@bench.command()
def sweep(
    axis: Annotated[str, typer.Argument(help="concurrency, rate, batch or length.")],
    values: Annotated[str, typer.Argument(help="Such as 1,2,4,8.")],
    name: Annotated[str, typer.Argument(help="The served model.")],
    url: UrlOption = DEFAULT_URL,
    duration: DurationOption = 6.0,
    warmup: WarmupOption = 1.0,
    batch: BatchOption = 1,
    length: LengthOption = 128,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a served model along one axis.

    Example: bilateral bench sweep concurrency 1,2,4,8 digits
    """
    from bilateral_benchmarks.experiments import sweep as sweeps
    from bilateral_benchmarks.experiments.served import DEFAULT_TIMEOUT_S, bench_served, try_out
    from bilateral_benchmarks.load.inputs import made_up
    from bilateral_benchmarks.load.schedule import Load
    from bilateral_serving.client import Client

    if axis not in sweeps.AXES:
        raise UserError(f"unknown axis '{axis}'", f"Use one of {', '.join(sweeps.AXES)}.")
    with Client(url) as client:
        specs = client.model_metadata(name).inputs
    if axis == "length" and not any(isinstance(size, str) for s in specs for size in s.shape[1:]):
        raise UserError(f"{name} has inputs of one length only", "Sweep over something else.")
    points = numbers(values, whole=axis != "rate")

    def inputs(value: float) -> dict[str, Array]:
        return made_up(
            specs,
            int(value) if axis == "batch" else batch,
            int(value) if axis == "length" else length,
        )

    with experiment() as shown:
        # What the server refuses at the last point should not cost the points before.
        shown.step(f"{name}, trying the largest {axis}")
        try_out(url, name, inputs(max(points)), DEFAULT_TIMEOUT_S)

        def at(value: float) -> Report:
            shown.part(points.index(value), len(points))
            shown.step(f"{name}, {axis} {value:g}")
            load = Load(
                concurrency=int(value) if axis == "concurrency" else 1,
                rate=value if axis == "rate" else None,
            )
            return bench_served(
                url, name, inputs(value), duration_s=duration, warmup_s=warmup, load=load
            )

        found = sweeps.sweep(axis, points, name, at)
    finish(found, f"{name} by {axis}", output, json)


@bench.command()
def breakdown(
    name: Annotated[str, typer.Argument(help="The served model.")],
    url: UrlOption = DEFAULT_URL,
    model: Annotated[
        Path | None, typer.Option(help="The file that is served, to time it in process too.")
    ] = None,
    duration: DurationOption = 5.0,
    batch: BatchOption = 1,
    length: LengthOption = 128,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Say where the time of a served request goes.

    Example: bilateral bench breakdown digits
    """
    from bilateral_benchmarks.experiments.breakdown import measure_breakdown
    from bilateral_benchmarks.load.inputs import made_up
    from bilateral_export.runners.lowered import LoweredRunner
    from bilateral_serving.client import Client

    with Client(url) as client:
        arrays = made_up(client.model_metadata(name).inputs, batch, length)
    with (
        one_measurement(f"parts of a request, {name}", duration) as on_progress,
        contextlib.ExitStack() as stack,
    ):
        call = None
        if model is not None:
            opened = stack.enter_context(LoweredRunner(model))
            call = functools.partial(opened.run, arrays)
        found = measure_breakdown(
            url, name, arrays, duration_s=duration, in_process=call, on_progress=on_progress
        )
    finish(found, f"Breakdown of {name}", output, json)
