"""`bilateral bench cold-start`: from a file to the first answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import OutputOption
from bilateral_cli.bench.output import finish
from bilateral_cli.console import JsonOption


@bench.command("cold-start")
def cold_start(
    model: Annotated[Path, typer.Argument(help="The exported ONNX file.")],
    models: Annotated[
        int,
        typer.Option(min=1, max=500, help="Serve it under so many names, each a model of its own."),
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 6,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the time from a file to its first answer, in a new process and from a new server.

    bilateral bench compare says from six rounds on whether a later version takes longer.

    Example: bilateral bench cold-start digits.onnx --models 50
    """
    from bilateral_benchmarks.experiments.cold_start import measure_cold_start

    with experiment() as shown:
        found = measure_cold_start(model, models=models, rounds=rounds, on_step=shown.step)
    finish(found, found.subject, output, json)
