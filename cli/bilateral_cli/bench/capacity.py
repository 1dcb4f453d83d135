"""`bilateral bench capacity`: settings, rate and replicas for a latency objective."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import LengthOption, OutputOption
from bilateral_cli.bench.output import finish
from bilateral_cli.console import DEFAULT_REPOSITORY, JsonOption, RepositoryOption


@bench.command()
def capacity(
    name: Annotated[str, typer.Argument(help="A model of the repository.")],
    p99: Annotated[float, typer.Option(help="What the p99 latency must not exceed, in ms.")],
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests a second to be answered: how many replicas does it take?"),
    ] = None,
    headroom: Annotated[
        float, typer.Option(help="Share of each replica's rate that is kept free.")
    ] = 0.3,
    trials: Annotated[
        int, typer.Option(min=1, help="Settings tried at most, about half a minute each.")
    ] = 12,
    duration: Annotated[
        float, typer.Option("--duration", metavar="SECONDS", help="Least, of each measurement.")
    ] = 4.0,
    length: LengthOption = 128,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Find the settings that hold a p99 latency at the highest rate on this machine.

    A server of its own is started for each setting of instances, threads, batch and queue delay;
    the model in the repository stays as it is. Exit code 1 when no setting holds the latency.

    Example: bilateral bench capacity digits --p99 10 --rate 5000
    """
    from bilateral_benchmarks.experiments.capacity import measure_capacity

    with experiment() as shown:
        found = measure_capacity(
            name,
            Path(repository),
            bound_ms=p99,
            wanted=rate,
            headroom=headroom,
            trials=trials,
            duration_s=duration,
            length=length,
            on_step=shown.step,
        )
    finish(found, f"Capacity of {name}", output, json)
