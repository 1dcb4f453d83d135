"""`bilateral quantize`: linear layers in 8 bits, for CPUs or for TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.output import finish
from bilateral_cli.console import JsonOption, choice, notes, out, styled
from bilateral_export.tensors import Array


@app.command()
def quantize(
    onnx: Annotated[Path, typer.Argument(help="The exported ONNX file, fp32 for CPUs.")],
    target: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    calibration: Annotated[
        Path,
        typer.Option(
            help="An .npz file of real prepared inputs by name, some hundreds of items, and if they"
            " are known their classes as 'labels'."
        ),
    ],
    runtime: Annotated[
        str, typer.Option(help="What will run it: onnxruntime or openvino, on CPUs, or tensorrt.")
    ] = "onnxruntime",
    max_loss: Annotated[
        float, typer.Option(metavar="POINTS", help="How much may be lost, in percentage points.")
    ] = 0.5,
    mode: Annotated[
        str, typer.Option(help="For tensorrt: int8, or fp8 for GPUs from Ada on.")
    ] = "int8",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write what was tried as JSON, too.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the fastest 8-bit form of a model that loses at most a stated share of its decisions.

    All linear layers are tried in 8 bits, then with activations smoothed, then with more and more
    of the most sensitive ones left float; attention stays float. Exit code 1: no form holds, and
    nothing was written. For tensorrt, NVIDIA Model Optimizer writes Q/DQ nodes for
    `bilateral build`, and nothing is searched.

    Example: bilateral quantize digits.onnx digits_int8.onnx --calibration images.npz
    """
    from bilateral_export.engine.quantize import read_calibration

    inputs = read_calibration(calibration)
    if runtime == "tensorrt":
        _for_tensorrt(onnx, target, inputs, mode)
        return
    from bilateral_benchmarks.experiments.quantization import quantize as search

    labels = inputs.pop("labels", None)
    with experiment() as shown:
        found = search(
            onnx,
            target,
            inputs,
            labels,
            runtime=runtime,
            max_loss=max_loss / 100,
            on_step=shown.step,
        )
    finish(found, found.subject, output, json)
    if not found.holds:
        notes.print(styled("No form holds the loss.", "bold red"), "Nothing was written.")
        raise typer.Exit(EXIT_FAILED)


def _for_tensorrt(onnx: Path, target: Path, inputs: dict[str, Array], mode: str) -> None:
    from bilateral_export.engine.quantize import Mode, quantize_onnx

    chosen = choice(mode, Mode, "--mode")
    with notes.status(f"Quantising {onnx}"):
        count = quantize_onnx(onnx, target, inputs, chosen)
    out.print(f"{target}: {count} quantise nodes, {mode}", soft_wrap=True)
