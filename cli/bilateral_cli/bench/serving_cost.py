"""`bilateral bench serving-cost`: a served model against the same file in process."""

from __future__ import annotations

from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import OutputOption
from bilateral_cli.bench.output import finish
from bilateral_cli.console import JsonOption


@bench.command()
def serving_cost(
    model: Annotated[
        str, typer.Argument(help="A checkpoint, or a known model's name.")
    ] = "deit_bilateral_tiny_patch16_224",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.05, help="For each measurement.")] = 1.0,
    loaded: Annotated[
        float, typer.Option(min=0.5, help="Seconds for each measurement under load.")
    ] = 15.0,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what serving costs over the same model in process, on two servers of its own.

    One of them with the front door, one without (`serve --direct`): latency of one caller,
    throughput when saturated, and how latency spreads at 70 % of that.

    Example: bilateral bench serving-cost --output out/serving_cost.json
    """
    from bilateral_benchmarks.experiments.serving_cost import measure_serving_cost

    with experiment() as shown:
        found = measure_serving_cost(
            model, rounds=rounds, seconds=seconds, loaded_s=loaded, on_step=shown.step
        )
    finish(found, f"Cost of serving {found.subject}", output, json)
