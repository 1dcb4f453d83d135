"""The `bilateral bench` group."""

from __future__ import annotations

import typer

from bilateral_cli.app import app

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Measure latency and throughput.

    Every answer is checked. Exit code 1 when a request failed, an answer is wrong, or a run is
    invalid.
    """,
)
app.add_typer(bench, name="bench")
