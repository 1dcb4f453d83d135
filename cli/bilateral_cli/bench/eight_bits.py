"""`bilateral bench quantize`: 8-bit forms in every runtime for CPUs."""

from __future__ import annotations

from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED
from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import OutputOption
from bilateral_cli.bench.output import finish_all
from bilateral_cli.console import JsonOption


@bench.command("quantize")
def quantize(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, or a known model's name for random weights.")
    ],
    max_loss: Annotated[
        float, typer.Option(metavar="POINTS", help="How much may be lost, in percentage points.")
    ] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="Of float and int8, interleaved.")] = 12,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what `bilateral quantize` loses and gains in ONNX Runtime and in OpenVINO.

    Each runtime is compared with itself in float32, interleaved. To features without a head, such
    as DINOv2's, one is fitted on 600 of scikit-learn's digits, and the accuracy on the others is
    what is lost. Else inputs are random and decisions that differ are lost; random weights may lose
    any, and are quantised whole. Exit code 1: no form holds the loss.

    Example: bilateral bench quantize deit_bilateral_small_patch16_224
    """
    from bilateral_benchmarks.experiments.eight_bits import measure_eight_bits

    with experiment() as shown:
        found = measure_eight_bits(
            checkpoint,
            max_loss=max_loss / 100,
            rounds=rounds,
            on_step=shown.step,
        )
    finish_all(found, "8-bit files", output, json)
    if not all(one.holds for one in found):
        raise typer.Exit(EXIT_FAILED)
