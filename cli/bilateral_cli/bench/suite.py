"""`bilateral bench suite`: every experiment in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.bench.app import bench
from bilateral_cli.bench.live import experiment
from bilateral_cli.bench.options import writable
from bilateral_cli.bench.output import exit_if_failed, show_pages


@bench.command()
def suite(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="JSON file; .md and .html go beside it.", callback=writable
        ),
    ] = Path("out/bench.json"),
    quick: Annotated[
        bool, typer.Option("--quick", help="The digits model and few rounds, in a minute.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PART", help="Run this part only; may be repeated."),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Run only what the JSON file lacks.")
    ] = False,
) -> None:
    """Measure everything in one run: runtimes, forms, growth, serving, the generator's limit.

    The models have random weights of the published sizes. What `make bench` runs. The file is
    written after each part; with --only and --missing, the other parts in it are kept. Exit code 1
    when a part failed or a run is invalid.

    Example: bilateral bench suite --output out/bench.json
    """
    from bilateral_benchmarks.experiments.suite import Suite

    with experiment() as shown:
        document = Suite(
            output,
            quick=quick,
            only=only,
            missing=missing,
            on_step=shown.step,
            on_part=shown.part,
            on_round=shown.blocks,
        ).run()
    show_pages(document, output)
    exit_if_failed(document)
