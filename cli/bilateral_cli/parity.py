"""`bilateral parity`: whether what is served computes what was trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import (
    DEFAULT_URL,
    JsonOption,
    UrlOption,
    notes,
    out,
    print_json,
    styled,
    table,
)
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from bilateral_export.parity.report.document import ParityReport, ParityRow


@app.command()
def parity(
    checkpoint: Annotated[Path, typer.Argument(help="The trained checkpoint.")],
    onnx: Annotated[Path, typer.Argument(help="The ONNX file exported from it.")],
    served: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare the served model of this name as well."),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    plan: Annotated[
        Path | None,
        typer.Option(help="Compare this TensorRT plan as well; needs the GPU it was built for."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(help="Real preprocessed inputs: an .npz file with one array per input."),
    ] = None,
    factor: Annotated[
        float,
        typer.Option(help="The budget of the largest error, as a multiple of eager PyTorch's."),
    ] = 4.0,
    batches: Annotated[
        str, typer.Option(metavar="N,N,...", help="Batch sizes, such as a profile's corners.")
    ] = "1,2,8,9",
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            "--length", metavar="NAME=N,N,...", help="Sizes of another dynamic dimension."
        ),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Random inputs to compare at least; 32, or more where an output is one to three"
            " numbers, unless given.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    adversarial: Annotated[
        int, typer.Option(min=0, help="Steps of searching for the inputs that disagree most.")
    ] = 0,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Run torch.compile too.")
    ] = False,
    layers: Annotated[
        bool, typer.Option(help="Report the error at every node, even when all passes.")
    ] = False,
    reproducers: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Write the first failing node alone there."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page too.")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="An earlier --json report; what is worse than it fails."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="As in `bilateral export`, where the checkpoint needs it; my_model.py:build runs"
            " that file's code."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="As in `bilateral export`, where the ONNX file does not say."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Judge every stage from training to serving against the FP64 model.

    The budget of each output is a multiple of the error that eager PyTorch makes in the graph's
    own precision, on the same inputs; the decisions must agree too. Where a stage that reads the
    file fails, the first node at fault is found. Exit code 0 when everything passes, 1 when
    something does not.

    Example: bilateral parity export/checkpoints/digits_bilateral.safetensors digits.onnx
    """
    from bilateral_export.artifact import read_metadata
    from bilateral_export.checkpoint.resolution import load_exported
    from bilateral_export.parity.compare import Candidate
    from bilateral_export.parity.identity import check_graph
    from bilateral_export.parity.inputs.samples import random_samples, real_samples
    from bilateral_export.parity.matrix import Plan, run_matrix
    from bilateral_export.parity.report.baseline import regressions, require_same_model
    from bilateral_export.parity.report.document import Skipped, read_report
    from bilateral_export.parity.report.html import write_html
    from bilateral_export.parity.stages import Stage, stages
    from bilateral_serving.client.runner import TritonRunner

    earlier = read_report(baseline) if baseline is not None else None
    sizes = _numbers(batches, "--batches")
    if not 0 < factor < float("inf"):
        raise UserError(f"--factor {factor} is no multiple", "Give a number above 0, such as 4.")
    if reproducers is not None and reproducers.exists() and not _is_empty(reproducers):
        raise UserError(f"{reproducers} exists already", "Remove it or choose another name.")
    dims = dict(_dimension(text) for text in lengths or [])
    with notes.status("Reading") as status, tempfile.TemporaryDirectory() as scratch:
        metadata = read_metadata(onnx)
        loaded = load_exported(checkpoint, metadata, model=model, weights=weights)
        if earlier is not None:
            require_same_model(earlier, loaded.card)
        described = loaded.build_model()
        check_graph(onnx, metadata, loaded.card.model.family)
        known = {size for spec in described.inputs() for size in spec.shape if size != "batch"}
        if unknown := dims.keys() - known:
            raise UserError(
                f"--length: the model has no dimension {', '.join(sorted(unknown))}",
                f"It has {', '.join(s for s in known if isinstance(s, str)) or 'none'}.",
            )
        samples = random_samples(described, sizes, dims, items, seed)
        if inputs is not None:
            samples += real_samples(described.inputs(), inputs, sizes)
        made, skipped = stages(
            loaded, onnx, metadata.precision, Path(scratch), compiled=compile_model
        )
        if served is not None:
            runner = TritonRunner(served, url)
            made.append(Stage(Candidate(runner, metadata.precision), True, required=True))
        else:
            skipped.append(Skipped(stage="served over gRPC", reason="give --served NAME"))
        if plan is not None:
            from bilateral_export.runners.tensorrt_runner import TensorRTRunner

            engine = TensorRTRunner(plan)
            made.append(Stage(Candidate(engine, metadata.precision), True, required=True))
        else:
            reason = "give --plan; it needs an NVIDIA GPU"
            skipped.append(Skipped(stage="TensorRT, function body or plugin", reason=reason))
        plan_of_work = Plan(
            loaded,
            made,
            samples,
            metadata,
            onnx,
            skipped,
            factor=factor,
            adversarial=adversarial,
            layers=layers or html is not None,
            reproducers=reproducers,
        )
        report = run_matrix(plan_of_work, status.update)
        if html is not None:
            write_html(html, report, samples)
    worse = regressions(report, earlier) if earlier is not None else []
    if json:
        print_json(report)
    else:
        _print(report)
    for text in worse:
        notes.print(styled("Worse than the baseline:", "bold red"), text, soft_wrap=True)
    if not report.passed or worse:
        raise typer.Exit(EXIT_FAILED)


def _numbers(text: str, option: str, smallest: int = 1) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < smallest:
        raise UserError(f"{option} {text!r} is no list of sizes", "Write it as 1,2,7.")
    return numbers


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _dimension(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    return name, _numbers(sizes, f"--length {name}", smallest=0)


def _print(report: ParityReport) -> None:
    out.print(parity_table(report))
    kept = [check for check in report.checks if check.passed]
    if report.checks:
        out.print(f"{len(kept)} of {len(report.checks)} checks hold.", highlight=False)
    for row in report.rows:
        if not row.passed:
            _say("FAIL", f"{row.stage}: {row.output}: {row.reason}")
    for check in report.checks:
        if not check.passed:
            _say("FAIL", f"{check.stage}: {check.name}: {check.detail}")
    for skipped in report.skipped:
        out.print(f"skipped {skipped.stage}: {skipped.reason}", style="dim", soft_wrap=True)
    for found in report.bisections:
        if found.culprit is None:
            continue
        at = found.culprit
        _say(
            "First wrong node",
            f"of {found.stage}: {at.node} ({at.operator})\n"
            f"  torch module {at.module or 'unknown'}, source {at.source or 'unknown'}\n"
            f"  error {at.error:.2e} there, allowed {at.limit:.2e}, {found.before:.2e} before it",
        )
        if found.reproducer:
            out.print(f"  reproducer: {found.reproducer}")


def _say(what: str, text: str) -> None:
    out.print(styled(what, "bold red"), text, soft_wrap=True)


def parity_table(report: ParityReport) -> Table:
    """The report as a table."""
    columns = ["stage", "output", ">error", ">budget", ">of eager", ">decisions"]
    rows = [
        (
            row.stage,
            row.output,
            f"{row.error:.1e}",
            f"{row.budget:.1e}",
            f"{row.typical:.2f}",
            _decision(row),
            styled("pass", "green") if row.passed else styled("FAIL", "bold red"),
        )
        for row in report.rows
    ]
    title = "Parity with FP64 PyTorch (largest relative error; typical error over eager's)"
    made = table([*columns, "verdict"], rows, title=title)
    for column in made.columns[2:]:
        column.no_wrap = True
    return made


def _decision(row: ParityRow) -> str:
    decision = row.decision
    if decision is None:
        return "-"
    if decision.metric == "perplexity":
        return f"ppl x{decision.summary_value:.4f}"
    if decision.summary:
        return f"{decision.summary} {decision.summary_value:.4f}"
    return f"{decision.agreement:.1%}"
