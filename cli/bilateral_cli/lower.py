"""`bilateral lower`: the fastest correct form of a model for one runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, notes, out, print_json, table

if TYPE_CHECKING:
    from bilateral_export.lowering.lower import LoweredModel


@app.command()
def lower(
    model: Annotated[Path, typer.Argument(help="An ONNX file from `bilateral export`.")],
    runtime: Annotated[
        str, typer.Option("--for", help="The runtime: 'onnxruntime-cpu' or 'openvino'.")
    ] = "onnxruntime-cpu",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Default: MODEL.RUNTIME.onnx beside the model."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="augmented, mask or decomposed, wherever it is possible."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Rewrite an exported model for one runtime, and check it.

    The exported file stays as it is and runs everywhere; the lowered one is for this runtime
    alone. Each rewritten attention is compared with its definition in float64; one with a larger
    rounding error than float32 arithmetic allows falls back to a slower form.

    Example: bilateral lower digits.onnx --for onnxruntime-cpu
    """
    from bilateral_export.lowering import lower as lowering

    with notes.status("Lowering"):
        lowered = lowering.lower(model, runtime, output, form=form)
    if json:
        print_json(lowered.lowering)
    else:
        _print(lowered)


def _print(lowered: LoweredModel) -> None:
    rows = [
        (
            site.node,
            site.form,
            "" if site.error is None else f"{site.error:.1e}",
            "" if site.budget is None else f"{site.budget:.1e}",
            "; ".join(site.refused),
        )
        for site in lowered.lowering.sites
    ]
    title = f"{lowered.path}: {lowered.lowering.summary}"
    out.print(table(["attention", "form", ">error", ">budget", "not used"], rows, title=title))
    for record in lowered.lowering.passes:
        error = "" if record.error is None else f", error {record.error:.1e}"
        budget = "" if record.budget is None else f", budget {record.budget:.1e}"
        done = f"not applied, {record.refused}" if record.refused else f"{record.applied} places"
        notes.print(f"{record.name}: {done}{error}{budget}")
