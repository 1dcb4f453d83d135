"""`bilateral bench score-files`: Ray Data against a plain loop."""

from __future__ import annotations

from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import OutputOption
from bilateral_cli.bench.output import finish
from bilateral_cli.console import JsonOption
from bilateral_cli.options import numbers


@bench.command()
def score_files(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint of an image classifier, or a known model's name.")
    ],
    items: Annotated[int, typer.Option(min=1, help="PNG files of digits to score.")] = 10_000,
    workers: Annotated[str, typer.Option(metavar="N,N", help="Numbers of workers.")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="Of all, interleaved.")] = 3,
    lower: Annotated[
        bool, typer.Option("--lower/--no-lower", help="Run the file lowered for ONNX Runtime.")
    ] = True,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure `bilateral score-files` against plain loops with the same file on the same cores.

    Exit code 1 if it has less than 0.9 of the loops' throughput once it has started.

    Example: bilateral bench score-files deit_bilateral_tiny_patch16_224 --items 1000
    """
    from bilateral_benchmarks.experiments.score_files import measure_score_files

    counts = [int(value) for value in numbers(workers, whole=True)]
    with experiment() as shown:
        found = measure_score_files(
            checkpoint,
            items,
            sorted(counts),
            rounds=rounds,
            lowered=lower,
            on_step=shown.step,
        )
    finish(found, "score-files against plain loops", output, json)
