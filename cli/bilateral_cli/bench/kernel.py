"""`bilateral bench kernel` and `bilateral check kernel`: times of the fused kernel on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED
from bilateral_cli.bench.app import bench
from bilateral_cli.check import check
from bilateral_cli.console import print_page


@bench.command()
@check.command()
def kernel(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for kernel.json and kernel.md.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose block sizes by timing first.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(help="Nothing begins after so long; the same command again goes on.")
    ] = 9.0,
) -> None:
    """Time the fused kernel against its baselines. Needs an NVIDIA GPU.

    Exit code 1 when a target is missed, or the time was not enough for all.

    Example: bilateral bench kernel --tune --output benchmarks/results
    """
    from bilateral_benchmarks.kernel.run import bench_kernel

    found = bench_kernel(output, tune, minutes)
    print_page(found)
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)
