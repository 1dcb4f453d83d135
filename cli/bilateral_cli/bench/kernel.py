"""`bilateral bench kernel`: times of the fused kernel on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED
from bilateral_cli.bench.app import bench


@bench.command()
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
    from bilateral_benchmarks.report.files import page

    found = bench_kernel(output, tune, minutes)
    sys.stdout.write(page(found))
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)
