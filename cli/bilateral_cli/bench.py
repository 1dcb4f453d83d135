"""`bilateral bench`: latency and throughput, in process and served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import (
    DEFAULT_URL,
    JsonOption,
    UrlOption,
    notes,
    out,
    print_json,
    progress,
    table,
)
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from bilateral_benchmarks.report import Report
    from bilateral_benchmarks.run import OnProgress
    from bilateral_export.runners.base import Runner

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Measure latency and throughput.",
)
app.add_typer(bench, name="bench")

DurationOption = Annotated[
    float, typer.Option("--duration", metavar="SECONDS", help="Length of the measurement.")
]
MaxDurationOption = Annotated[
    float | None,
    typer.Option(
        "--max-duration",
        metavar="SECONDS",
        help="Go on up to so long until three windows agree. Default: --duration.",
    ),
]
WarmupOption = Annotated[
    float, typer.Option("--warmup", metavar="SECONDS", help="Least warm-up before it.")
]
BatchOption = Annotated[int, typer.Option("--batch", help="Items in one request.")]
LengthOption = Annotated[
    int, typer.Option("--length", help="Size of every free axis but the batch.")
]
InputsOption = Annotated[
    Path | None,
    typer.Option("--inputs", help="Real inputs: an .npz file. Default: made up."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the report to this JSON file.")
]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", "-c", help="Callers at a time.")]


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
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a served model over gRPC.

    Without --rate, callers send when their last answer has come (closed loop). With it, requests
    are sent on schedule and latency counts from when the schedule wanted them sent (open loop).

    Example: bilateral bench served digits --concurrency 4
    """
    from bilateral_benchmarks.inputs import choose
    from bilateral_benchmarks.load import Load
    from bilateral_benchmarks.served import bench_served
    from bilateral_serving.client import Client

    if arrivals not in ("constant", "poisson"):
        raise UserError(f"unknown arrivals '{arrivals}'", "Use 'poisson' or 'constant'.")
    with Client(url, timeout_s=timeout) as client:
        arrays = choose(client.model_metadata(name).inputs, inputs, batch, length)
    load = Load(concurrency=concurrency, rate=rate, arrivals=arrivals, processes=processes)  # type: ignore[arg-type]
    with _display(f"{name}, {load}", duration + warmup) as on_progress:
        report = bench_served(
            url,
            name,
            arrays,
            duration_s=duration,
            max_duration_s=max_duration,
            warmup_s=warmup,
            load=load,
            timeout_s=timeout,
            on_progress=on_progress,
        )
    _finish(report, output, json)


@bench.command()
def runner(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a TensorRT plan.")],
    concurrency: ConcurrencyOption = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads within one call. Default: one per core.")
    ] = None,
    duration: DurationOption = 9.0,
    max_duration: MaxDurationOption = None,
    warmup: WarmupOption = 2.0,
    batch: BatchOption = 1,
    length: LengthOption = 128,
    inputs: InputsOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a model in this process: an ONNX file with ONNX Runtime, a plan with TensorRT.

    Example: bilateral bench runner digits.onnx
    """
    from bilateral_benchmarks.in_process import bench_runner
    from bilateral_benchmarks.inputs import choose

    with _in_process(model, threads) as opened:
        arrays = choose(opened.inputs, inputs, batch, length)
        with _display(f"{opened.name}, batch {batch}", duration + warmup) as on_progress:
            report = bench_runner(
                opened,
                arrays,
                duration_s=duration,
                max_duration_s=max_duration,
                warmup_s=warmup,
                concurrency=concurrency,
                on_progress=on_progress,
            )
    _finish(report, output, json)


def _in_process(model: Path, threads: int | None) -> Runner:
    if model.suffix == ".plan":
        from bilateral_export.runners.tensorrt_runner import TensorRTRunner

        return TensorRTRunner(model)
    from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(model, threads)


def report_table(report: Report) -> Table:
    """The percentiles of a report, with their confidence intervals."""
    rows = []
    kinds = [("response", report.response)]
    if report.lateness is not None:
        kinds += [("service", report.service), ("send delay", report.lateness)]
    for kind, latency in kinds:
        for percentile in latency.percentiles:
            if percentile.value_ms is None:
                value, interval = "-", f"needs {percentile.needed:,} requests"
            else:
                low, high = (
                    "?" if end is None else f"{end:.2f}"
                    for end in (percentile.low_ms, percentile.high_ms)
                )
                value, interval = f"{percentile.value_ms:.2f}", f"{low} .. {high}"
            rows.append((kind, f"p{percentile.percent:g}", value, interval))
        rows.append((kind, "mean", f"{latency.mean_ms:.2f}", f"sd {latency.std_ms:.2f}"))
        rows.append((kind, "max", f"{latency.max_ms:.2f}", ""))
    title = (
        f"{report.subject}, batch {report.batch}, {report.load}: "
        f"{report.throughput:.1f} requests/s, {report.requests:,} requests"
    )
    return table(["latency", "", ">ms", ">95% interval"], rows, title=title)


def _finish(report: Report, output: Path | None, json: bool) -> None:
    """Write and print a report."""
    from bilateral_export.files import write_text

    if output is not None:
        write_text(output, report.model_dump_json(indent=2) + "\n")
    if json:
        print_json(report)
        return
    out.print(report_table(report))
    for problem in report.problems:
        label = "unstable" if report.valid else "INVALID"
        notes.print(f"[bold yellow]{label}:[/] {problem}", highlight=False)
    if output is not None:
        notes.print(f"Wrote {output}")


@contextlib.contextmanager
def _display(what: str, seconds: float) -> Iterator[OnProgress]:
    """A progress line with the current median; yields what a measurement calls."""
    with progress() as shown:
        task = shown.add_task(what, total=seconds)

        def update(elapsed: float, median_s: float | None) -> None:
            now = "" if median_s is None else f", p50 now {1e3 * median_s:.2f} ms"
            shown.update(task, completed=elapsed, description=what + now)

        yield update
