"""`bilateral parity`: whether what is served computes what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import DEFAULT_URL, JsonOption, UrlOption, notes, out, print_json, table
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from bilateral_export.parity.compare import ParityReport


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
        float, typer.Option(help="The budget, as a multiple of eager PyTorch's own error.")
    ] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the random inputs.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="As in `bilateral export`, where the checkpoint needs it.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare an exported and a served model with the FP64 model, and give a verdict.

    The budget of each output is a multiple of the error that eager PyTorch makes in the graph's
    own precision, on the same inputs; the top-1 decision must agree too. Exit code 0 when every
    row passes, 1 when one does not.

    Example: bilateral parity export/checkpoints/digits_bilateral.safetensors digits.onnx
    """
    from bilateral_export.checkpoint.load import load_checkpoint
    from bilateral_export.checkpoint.resolution import as_exported
    from bilateral_export.parity.compare import Candidate, compare
    from bilateral_export.parity.samples import random_samples, real_samples
    from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
    from bilateral_export.runners.torch_runner import TorchRunner
    from bilateral_serving.artifact import read_onnx
    from bilateral_serving.runner import TritonRunner

    with notes.status("Comparing"):
        loaded = load_checkpoint(checkpoint, model=model)
        metadata = read_onnx(onnx).metadata
        if metadata is None:
            raise UserError(
                f"{onnx} does not say what it was exported from", "Use `bilateral export`."
            )
        loaded = as_exported(loaded, metadata)
        precision = metadata.precision
        specs = TorchRunner(loaded).inputs
        samples = random_samples(specs, seed=seed)
        if inputs is not None:
            samples += real_samples(specs, inputs)
        candidates = [Candidate(OnnxRuntimeRunner(onnx), precision)]
        if served is not None:
            candidates.append(Candidate(TritonRunner(served, url), precision))
        if plan is not None:
            from bilateral_export.runners.tensorrt_runner import TensorRTRunner

            candidates.append(Candidate(TensorRTRunner(plan), precision))
        report = compare(loaded, candidates, samples, factor)
    if json:
        print_json(report)
    else:
        out.print(parity_table(report))
    if not report.passed:
        raise typer.Exit(EXIT_FAILED)


def parity_table(report: ParityReport) -> Table:
    """The report as a table."""
    rows = [
        (
            row.runner,
            row.precision,
            row.output,
            f"{row.error:.2e}",
            f"{row.eager_error:.2e}",
            f"{row.budget:.2e}",
            f"{row.agreement:.2%}",
            "[green]pass[/]" if row.passed else "[bold red]FAIL[/]",
        )
        for row in report.rows
    ]
    columns = ["runner", "precision", "output", ">error", ">eager error", ">budget", ">top-1"]
    return table([*columns, "verdict"], rows, title="Parity with FP64 PyTorch (relative error)")
