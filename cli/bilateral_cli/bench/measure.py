"""`bilateral bench served` and `runner`: one measurement, over gRPC or in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import one_measurement
from bilateral_cli.bench.options import (
    BatchOption,
    ConcurrencyOption,
    DurationOption,
    InputsOption,
    LengthOption,
    MaxDurationOption,
    OutputOption,
    WarmupOption,
)
from bilateral_cli.bench.output import finish
from bilateral_cli.console import DEFAULT_URL, JsonOption, UrlOption
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from bilateral_export.runners.base import Runner


@bench.command()
def served(
    name: Annotated[str, typer.Argument(help="The served model.")],
    url: UrlOption = DEFAULT_URL,
    concurrency: ConcurrencyOption = 1,
    rate: Annotated[
        float | None,
        typer.Option(help="Send so many requests a second on schedule, whatever comes back."),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="With --rate: 'poisson', or 'constant' distances.")
    ] = "poisson",
    processes: Annotated[int, typer.Option(help="Processes that send.")] = 1,
    duration: DurationOption = 9.0,
    max_duration: MaxDurationOption = None,
    warmup: WarmupOption = 2.0,
    batch: BatchOption = 1,
    length: LengthOption = 128,
    inputs: InputsOption = None,
    timeout: Annotated[float, typer.Option(help="Deadline of each request, in seconds.")] = 60.0,
    shared_memory: Annotated[
        bool | None,
        typer.Option(
            "--shared-memory/--no-shared-memory",
            help="For large inputs. Default: where the server is on this machine.",
        ),
    ] = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a served model over gRPC.

    Without --rate, callers send when their last answer has come (closed loop). With it, requests
    are sent on schedule and latency counts from when the schedule wanted them sent (open loop).

    Example: bilateral bench served digits --concurrency 4
    """
    from bilateral_benchmarks.experiments.served import bench_served
    from bilateral_benchmarks.load.inputs import choose
    from bilateral_benchmarks.load.schedule import Load
    from bilateral_serving.client import Client

    if arrivals not in ("constant", "poisson"):
        raise UserError(f"unknown arrivals '{arrivals}'", "Use 'poisson' or 'constant'.")
    with Client(url, timeout_s=timeout) as client:
        arrays = choose(client.model_metadata(name).inputs, inputs, batch, length)
    load = Load(concurrency=concurrency, rate=rate, arrivals=arrivals, processes=processes)  # type: ignore[arg-type]
    with one_measurement(f"{name}, {load}", duration + warmup) as on_progress:
        report = bench_served(
            url,
            name,
            arrays,
            duration_s=duration,
            max_duration_s=max_duration,
            warmup_s=warmup,
            load=load,
            timeout_s=timeout,
            shared_memory=shared_memory,
            on_progress=on_progress,
        )
    finish(report, report.subject, output, json)


@bench.command()
def runner(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a TensorRT plan.")],
    concurrency: ConcurrencyOption = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads within one call. Default: one per core.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="For an ONNX file: onnxruntime or openvino.")
    ] = "onnxruntime",
    lower: Annotated[
        bool,
        typer.Option("--lower/--no-lower", help="Run the form that is fastest on the runtime."),
    ] = True,
    duration: DurationOption = 9.0,
    max_duration: MaxDurationOption = None,
    warmup: WarmupOption = 2.0,
    batch: BatchOption = 1,
    length: LengthOption = 128,
    inputs: InputsOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a model in this process: an ONNX file, or a plan with TensorRT.

    Example: bilateral bench runner digits.onnx
    """
    from bilateral_benchmarks.experiments.in_process import bench_runner
    from bilateral_benchmarks.load.inputs import choose

    with _in_process(model, threads, runtime, lower) as opened:
        arrays = choose(opened.inputs, inputs, batch, length)
        with one_measurement(f"{opened.name}, batch {batch}", duration + warmup) as on_progress:
            report = bench_runner(
                opened,
                arrays,
                duration_s=duration,
                max_duration_s=max_duration,
                warmup_s=warmup,
                concurrency=concurrency,
                subject=f"{model.name}, {opened.name}",
                on_progress=on_progress,
            )
    finish(report, report.subject, output, json)


def _in_process(model: Path, threads: int | None, runtime: str, lower: bool) -> Runner:
    """Return the runner of a model file, not open yet."""
    if model.suffix == ".plan":
        from bilateral_export.runners.tensorrt_runner import TensorRTRunner

        return TensorRTRunner(model)
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads", "Give at least 1.")
    from bilateral_export.runners.lowered import LoweredRunner

    return LoweredRunner(model, runtime, threads, lower=lower)
