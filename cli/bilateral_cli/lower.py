"""`bilateral lower`: the fastest right form of a model for one runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, notes, out, print_json, table


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
    """Rewrite the attention of an exported model for one runtime, and check it.

    The exported file stays as it is and runs everywhere; the lowered one is for this runtime
    alone. Each rewritten attention is compared with its definition in float64; one that rounds
    worse than float32 arithmetic must falls back to a slower form.

    Example: bilateral lower digits.onnx --for onnxruntime-cpu
    """
    from bilateral_export.lowering import lower as lowering

    target = output or model.with_suffix(f".{runtime}.onnx")
    with notes.status("Lowering"):
        lowered = lowering.lower(model, runtime, target, form=form)
    if json:
        print_json(lowered.lowering)
        return
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
    title = f"{target}: {lowered.lowering.summary}"
    out.print(table(["attention", "form", ">error", ">budget", "not used"], rows, title=title))
    stream, read, kernels = (
        lowered.lowering.stream,
        lowered.lowering.rows,
        lowered.lowering.kernels,
    )
    notes.print(
        f"residual stream: error {stream.error:.1e}, budget {stream.budget:.1e}"
        if stream.rewritten
        else f"residual stream: as it was; {stream.refused}",
    )
    notes.print(
        f"tokens that are not read: left out of {read.nodes} nodes"
        if read.nodes
        else f"tokens that are not read: as they were; {read.refused}",
    )
    if runtime == "onnxruntime-cpu":
        notes.print(
            f"ONNX Runtime's kernels: as it picks them; {kernels.refused}"
            if kernels.refused
            else f"ONNX Runtime's kernels: heads read in place {kernels.heads} times, "
            f"shares of x0 added in products {kernels.shares} times, "
            f"nodes that move tokens: {kernels.moves} less, GELUs kept: {kernels.gelus}",
        )
