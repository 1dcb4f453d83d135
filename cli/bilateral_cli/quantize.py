"""`bilateral quantize`: matrix products in INT8 or FP8, through Q/DQ nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import choice, notes, out


@app.command()
def quantize(
    onnx: Annotated[Path, typer.Argument(help="The exported ONNX file; fp16 for mixed plans.")],
    target: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    calibration: Annotated[
        Path, typer.Option(help="An .npz file with some dozens of typical inputs, by name.")
    ],
    mode: Annotated[str, typer.Option(help="int8, or fp8 for GPUs from Ada on.")] = "int8",
) -> None:
    """Quantise a model's matrix products with NVIDIA Model Optimizer, for `bilateral build`.

    Example: bilateral quantize digits.onnx digits_int8.onnx --calibration images.npz
    """
    from bilateral_export.engine.quantize import Mode, quantize_onnx, read_calibration

    chosen = choice(mode, Mode, "--mode")
    inputs = read_calibration(calibration)
    with notes.status(f"Quantising {onnx}"):
        count = quantize_onnx(onnx, target, inputs, chosen)
    out.print(f"{target}: {count} quantise nodes, {mode}", soft_wrap=True)
