"""`bilateral bench raw`: files prepared by the server against files prepared by the client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import OutputOption
from bilateral_cli.bench.output import finish
from bilateral_cli.console import DEFAULT_URL, JsonOption, UrlOption


@bench.command()
def raw(
    name: Annotated[str, typer.Argument(help="A served classifier that takes files.")],
    file: Annotated[Path, typer.Argument(help="The file to send.")],
    url: UrlOption = DEFAULT_URL,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 6,
    seconds: Annotated[float, typer.Option(min=0.05, help="For each measurement.")] = 1.0,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what it costs to have the server prepare a file instead of the client.

    Example: bilateral bench raw digits export/checkpoints/digits/3-0.png
    """
    from bilateral_benchmarks.experiments.raw_input import measure_raw_input

    with experiment() as shown:
        found = measure_raw_input(
            url, name, file, rounds=rounds, seconds=seconds, on_step=shown.step
        )
    finish(found, found.subject, output, json)
