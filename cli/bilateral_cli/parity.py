"""`bilateral parity`: whether what is served computes what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import (
    DEFAULT_URL,
    JsonOption,
    ServersOption,
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
    url: ServersOption = DEFAULT_URL,
    plan: Annotated[
        Path | None,
        typer.Option(help="Compare this TensorRT plan as well; needs the GPU it was built for."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Real preprocessed inputs: an .npz file with one array per input, and if they are"
            " known their classes as 'labels'."
        ),
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
    file fails, the first node at fault is found. A file of `bilateral quantize` is held to the
    loss of decisions that it states, on --inputs. Exit code 0 when everything passes, 1 when
    something does not.

    Example: bilateral parity export/checkpoints/digits_bilateral.safetensors digits.onnx
    """
    from bilateral_export.parity.check import check
    from bilateral_serving.client.runner import TritonRunner

    with notes.status("Reading") as status:
        report = check(
            checkpoint,
            onnx,
            served=None if served is None else TritonRunner(served, url),
            plan=plan,
            inputs=inputs,
            factor=factor,
            batches=_numbers(batches, "--batches"),
            lengths=dict(_dimension(text) for text in lengths or []),
            items=items,
            seed=seed,
            adversarial=adversarial,
            compiled=compile_model,
            layers=layers,
            reproducers=reproducers,
            html=html,
            baseline=baseline,
            model=model,
            weights=weights,
            progress=status.update,
        )
    if json:
        print_json(report)
    else:
        _print(report)
    for text in report.regressions:
        notes.print(styled("Worse than the baseline:", "bold red"), text, soft_wrap=True)
    if not report.passed or report.regressions:
        raise typer.Exit(EXIT_FAILED)


def _numbers(text: str, option: str, smallest: int = 1) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < smallest:
        raise UserError(f"{option} {text!r} is not a list of sizes", "Write it as 1,2,7.")
    return numbers


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
    if row.loss is not None:
        return f"lost {row.loss}"
    if decision is None:
        return "-"
    if decision.metric == "perplexity":
        return f"ppl x{decision.summary_value:.4f}"
    if decision.summary:
        return f"{decision.summary} {decision.summary_value:.4f}"
    return f"{decision.agreement:.1%}"
