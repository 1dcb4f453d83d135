"""`bilateral bench sizes`: a file of several sizes against a file of each."""

from __future__ import annotations

from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import OutputOption
from bilateral_cli.bench.output import finish, show_pages
from bilateral_cli.console import JsonOption
from bilateral_cli.options import numbers, parse_sizes


@bench.command()
def sizes(
    model: Annotated[
        str, typer.Option(help="A known image classifier; its weights are random.")
    ] = "deit_bilateral_tiny_patch16_224",
    at: Annotated[
        str, typer.Option("--at", metavar="SIZE,SIZE,...", help="The sizes, as of `export`.")
    ] = "224,384,512x384",
    batches: Annotated[str, typer.Option("--batch", metavar="N,N,...", help="Batches.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 12,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what a file of several sizes costs, against the file of one size, at that size.

    Example: bilateral bench sizes --output benchmarks/results/sizes.json
    """
    from bilateral_benchmarks.experiments.document import BenchDocument
    from bilateral_benchmarks.experiments.several_sizes import (
        measure_several_sizes,
        random_weights,
    )

    with experiment() as shown:
        found = measure_several_sizes(
            random_weights(model),
            parse_sizes(at, "--at"),
            [int(batch) for batch in numbers(batches, whole=True)],
            rounds=rounds,
            on_step=shown.step,
        )
    finish(found, found.page_title, output, json)
    if output is not None:
        show_pages(BenchDocument(title=found.page_title, items=(found,)), output)
