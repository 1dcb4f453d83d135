"""The `bilateral bench` group."""

from __future__ import annotations

import typer

from bilateral_cli.app import app

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Measure latency and throughput.",
)
app.add_typer(bench, name="bench")
