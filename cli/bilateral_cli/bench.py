"""`bilateral bench`: latency and throughput, in process and served."""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from bilateral_cli.app import EXIT_FAILED, app
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
    from bilateral_benchmarks.document import Document
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
    from bilateral_benchmarks.in_process import bench_runner
    from bilateral_benchmarks.inputs import choose

    with _in_process(model, threads, runtime, lower) as opened:
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


@contextlib.contextmanager
def _in_process(model: Path, threads: int | None, runtime: str, lower: bool) -> Iterator[Runner]:
    """The open runner of a model file, lowered for its runtime where that is possible."""
    with contextlib.ExitStack() as stack:
        if lower and model.suffix != ".plan":
            from bilateral_export.files import require_file
            from bilateral_export.lowering.lower import has_attention
            from bilateral_export.lowering.lower import lower as lowered

            if has_attention(require_file(model, "model")):
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                target = "openvino" if runtime == "openvino" else "onnxruntime-cpu"
                with notes.status("Lowering"):
                    model = lowered(model, target, scratch / model.name).path
        yield stack.enter_context(_runner(model, threads, runtime))


def _runner(model: Path, threads: int | None, runtime: str) -> Runner:
    if model.suffix == ".plan":
        from bilateral_export.runners.tensorrt_runner import TensorRTRunner

        return TensorRTRunner(model)
    from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

    if runtime == "onnxruntime":
        return OnnxRuntimeRunner(model, threads)
    if runtime == "openvino":
        from bilateral_export.runners.openvino_runner import OpenVinoRunner

        return OpenVinoRunner(model, threads)
    raise UserError(f"unknown runtime '{runtime}'", "Use 'onnxruntime' or 'openvino'.")


@bench.command()
def suite(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON file; .md and .html go beside it.")
    ] = Path("out/bench.json"),
    quick: Annotated[
        bool, typer.Option("--quick", help="The digits model and few rounds, in a minute.")
    ] = False,
) -> None:
    """Measure everything in one run: runtimes, forms, growth, serving, the generator's limit.

    The models have random weights of the published sizes. What `make bench` runs.

    Example: bilateral bench suite --output out/bench.json
    """
    from bilateral_benchmarks.suite import Suite

    with notes.status("Starting") as status:
        document = Suite(output, quick=quick, on_step=status.update).run()
    _write_pages(document, output)
    if document.failures:
        for failure in document.failures:
            notes.print(f"[bold red]Failed:[/] {failure}", highlight=False)
        raise typer.Exit(EXIT_FAILED)


@bench.command()
def pipeline(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for pipeline.json and pipeline.md.")
    ] = Path("out"),
    checkpoints: Annotated[
        Path, typer.Option(help="Directory of the committed checkpoints.")
    ] = Path("export/checkpoints"),
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This model; may be given repeatedly.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what passed before, by the output.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Take every model of the paper from checkpoint to gRPC at its real size.

    Checkpoint, ONNX, parity, TensorRT plan, repository, tritonserver, real inputs, parity of what
    is served. Exit code 1 when a model does not arrive or is not served as it was trained.

    Example: bilateral bench pipeline --only segmenter_bilateral_tiny
    """
    from bilateral_benchmarks.pipeline.journey import Journey
    from bilateral_benchmarks.pipeline.run import run_pipeline

    def on_journey(name: str, result: Journey | str) -> None:
        if isinstance(result, Journey):
            word = "[green]pass[/]" if result.passed else "[bold red]FAIL[/]"
            said = "; ".join(f"{answer.asked}: {answer.said}" for answer in result.answers)
            notes.print(f"{word} [bold]{name}[/] {escape(said)}", highlight=False, soft_wrap=True)
        else:
            notes.print(f"[bold red]Failed:[/] {name}: {escape(result)}", highlight=False)

    with notes.status("Starting") as status:
        found = run_pipeline(output, checkpoints, only or (), resume, status.update, on_journey)
    if json:
        print_json(found)
    else:
        out.print(f"Table: {output / 'pipeline.md'}")
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)


@bench.command()
def runtimes(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a known model's name.")],
    batch: BatchOption = 1,
    image_size: Annotated[int | None, typer.Option(help="With a name: another image size.")] = None,
    rounds: Annotated[int, typer.Option(help="Of every runtime, by turns.")] = 15,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile.")] = True,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Compare torch, ONNX Runtime, OpenVINO and TensorRT on one model, in process and by turns.

    Example: bilateral bench runtimes deit_bilateral_small_patch16_224
    """
    from bilateral_benchmarks.contenders import usual_contenders

    def contenders(*args: Any) -> list[Any]:
        return list(usual_contenders(*args, compiled=compiled))

    document = _compare(checkpoint, image_size, batch, rounds, contenders, False, "runtimes")
    _finish_document(document, output, json)


@bench.command()
def ablation(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a known model's name.")],
    batch: BatchOption = 1,
    image_size: Annotated[int | None, typer.Option(help="With a name: another image size.")] = None,
    rounds: Annotated[int, typer.Option(help="Of every form, by turns.")] = 15,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the forms of one model's attention: latency, memory and parity side by side.

    Example: bilateral bench ablation export/checkpoints/digits_bilateral.safetensors
    """
    from bilateral_benchmarks.contenders import attention_forms

    def contenders(*args: Any) -> list[Any]:
        return list(attention_forms(*args))

    document = _compare(checkpoint, image_size, batch, rounds, contenders, True, "forms")
    _finish_document(document, output, json)


@bench.command()
def growth(
    lengths: Annotated[str, typer.Option(help="Numbers of tokens.")] = "197,577,1025,2048,4096",
    seconds: Annotated[float, typer.Option(help="For each point.")] = 1.0,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure attention's time and peak memory against length, batch and depth.

    Example: bilateral bench growth --lengths 1025,4096,16384
    """
    from bilateral_benchmarks.document import Document
    from bilateral_benchmarks.growth import measure_growth

    with notes.status("Starting") as status:
        sizes = [int(value) for value in _numbers(lengths)]
        found = measure_growth(sizes, seconds=seconds, on_point=status.update)
    _finish_document(Document(title="Growth of attention", items=(found,)), output, json)


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
    from bilateral_benchmarks.document import Document
    from bilateral_benchmarks.inputs import made_up
    from bilateral_benchmarks.scenarios import named_scenario, run_scenario
    from bilateral_serving.client import Client

    chosen = named_scenario(which)
    with Client(url) as client:
        info = client.model_metadata(name)
    with _display(f"{chosen}, {name}", duration + warmup) as on_progress:
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
        )
    _finish_document(Document(title=f"{chosen}: {name}", items=(result,)), output, json)


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
    from bilateral_benchmarks import sweep as sweeps
    from bilateral_benchmarks.document import Document
    from bilateral_benchmarks.inputs import made_up
    from bilateral_benchmarks.load import Load
    from bilateral_benchmarks.served import bench_served
    from bilateral_serving.client import Client

    if axis not in sweeps.AXES:
        raise UserError(f"unknown axis '{axis}'", f"Use one of {', '.join(sweeps.AXES)}.")
    with Client(url) as client:
        specs = client.model_metadata(name).inputs
    with notes.status("Starting") as status:

        def at(value: float) -> Report:
            status.update(f"{name}, {axis} {value:g}")
            load = Load(
                concurrency=int(value) if axis == "concurrency" else 1,
                rate=value if axis == "rate" else None,
            )
            arrays = made_up(
                specs,
                int(value) if axis == "batch" else batch,
                int(value) if axis == "length" else length,
            )
            return bench_served(url, name, arrays, duration_s=duration, warmup_s=warmup, load=load)

        found = sweeps.sweep(axis, _numbers(values), name, at)
    _finish_document(Document(title=f"{name} by {axis}", items=(found,)), output, json)


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
    from bilateral_benchmarks.breakdown import measure_breakdown
    from bilateral_benchmarks.document import Document
    from bilateral_benchmarks.inputs import made_up
    from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
    from bilateral_serving.client import Client

    with Client(url) as client:
        arrays = made_up(client.model_metadata(name).inputs, batch, length)
    with notes.status("Measuring"), contextlib.ExitStack() as stack:
        call = None
        if model is not None:
            opened = stack.enter_context(OnnxRuntimeRunner(model))
            call = functools.partial(opened.run, arrays)
        found = measure_breakdown(url, name, arrays, duration_s=duration, in_process=call)
    _finish_document(Document(title=f"Breakdown of {name}", items=(found,)), output, json)


@bench.command()
def compare(
    before: Annotated[Path, typer.Argument(help="The older report (JSON).")],
    after: Annotated[Path, typer.Argument(help="The newer report (JSON).")],
    json: JsonOption = False,
) -> None:
    """Say what became faster, slower, or cannot be told apart. Exit code 1 if anything is slower.

    Example: bilateral bench compare main.json branch.json
    """
    from bilateral_benchmarks.document import load_document
    from bilateral_benchmarks.tables import between
    from bilateral_benchmarks.verdict import compare_documents

    verdicts = compare_documents(load_document(before), load_document(after))
    if json:
        print_json([vars(verdict) for verdict in verdicts])
    else:
        colours = {"faster": "green", "slower": "bold red", "indistinguishable": "dim"}
        rows = [
            (
                v.what,
                f"p{v.percent:g}",
                f"{v.ratio:.3f}",
                between(v.low, v.high),
                f"[{colours[v.judgement]}]{v.judgement}[/]",
            )
            for v in verdicts
        ]
        columns = ["measurement", "", ">after / before", ">interval", ""]
        out.print(table(columns, rows))
    if any(verdict.judgement == "slower" for verdict in verdicts):
        raise typer.Exit(EXIT_FAILED)


@bench.command()
def report(
    results: Annotated[Path, typer.Argument(help="A report (JSON).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Name of the .md and .html files.")
    ] = None,
) -> None:
    """Turn a report into Markdown and a self-contained HTML page.

    Example: bilateral bench report out/bench.json
    """
    from bilateral_benchmarks.document import load_document

    _write_pages(load_document(results), output or results)


@bench.command()
def schema() -> None:
    """Print the JSON schema of the reports."""
    from bilateral_benchmarks.document import schema as text

    sys.stdout.write(text())


def _compare(
    source: str,
    image_size: int | None,
    batch: int,
    rounds: int,
    contenders: Callable[..., list[Any]],
    memory: bool,
    what: str,
) -> Document:
    """Export a checkpoint and compare contenders on it."""
    from bilateral_benchmarks.comparison import run_comparison
    from bilateral_benchmarks.contenders import checkpoint_of
    from bilateral_benchmarks.document import Document
    from bilateral_benchmarks.suite import OPSET
    from bilateral_export.graph.export import export_onnx

    with notes.status("Exporting") as status, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = checkpoint_of(source, folder, image_size)
        exported = folder / "exported.onnx"
        export_onnx(checkpoint, exported, opset=OPSET)
        found = run_comparison(
            f"{checkpoint.card.name}, {what}",
            checkpoint,
            exported,
            contenders(checkpoint, exported, folder),
            batch=batch,
            rounds=rounds,
            memory=memory,
            on_step=status.update,
        )
    return Document(title=found.title, items=(found,))


def _finish_document(document: Document, output: Path | None, json: bool) -> None:
    """Print a document, and write it where asked."""
    from bilateral_benchmarks.document import save_document
    from bilateral_benchmarks.tables import tables_of

    if output is not None:
        save_document(document, output)
        notes.print(f"Wrote {output}")
    if json:
        print_json(document)
        return
    for item in document.items:
        for found in tables_of(item):
            out.print(table(found.columns, found.rows, title=found.title))
            for note in found.notes:
                notes.print(note, highlight=False)


def _write_pages(document: Document, path: Path) -> None:
    from bilateral_benchmarks.render import html, markdown
    from bilateral_export.files import write_text

    for suffix, text in ((".md", markdown(document)), (".html", html(document))):
        write_text(path.with_suffix(suffix), text)
        notes.print(f"Wrote {path.with_suffix(suffix)}")


@bench.command()
def kernel(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for kernel.json and kernel.md.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose block sizes by timing first.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(help="Nothing begins after so long; the same command again goes on.")
    ] = 9.0,
) -> None:
    """Time the fused kernel against every other way to compute its answer. Needs an NVIDIA GPU.

    Exit code 1 when a target is missed.

    Example: bilateral bench kernel --tune --output benchmarks/results
    """
    from bilateral_benchmarks.kernel import bench_kernel

    if not bench_kernel(output, tune, minutes):
        raise typer.Exit(EXIT_FAILED)


def _numbers(text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",") if value.strip()]
    except ValueError as error:
        raise UserError(f"'{text}' is no list of numbers", "Write it as 1,2,4.") from error


def _finish(report: Report, output: Path | None, json: bool) -> None:
    """Write and print the report of one measurement."""
    from bilateral_benchmarks.document import Document

    _finish_document(Document(title=report.subject, items=(report,)), output, json)


@contextlib.contextmanager
def _display(what: str, seconds: float) -> Iterator[OnProgress]:
    """A progress line with the current median; yields what a measurement calls."""
    with progress() as shown:
        task = shown.add_task(what, total=seconds)

        def update(elapsed: float, median_s: float | None) -> None:
            now = "" if median_s is None else f", p50 now {1e3 * median_s:.2f} ms"
            shown.update(task, completed=elapsed, description=what + now)

        yield update
