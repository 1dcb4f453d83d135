"""The Typer application that every command adds itself to."""

from __future__ import annotations

from typing import Annotated

import typer

from bilateral_cli import EXIT_FAILED as EXIT_FAILED
from bilateral_export import __version__

app = typer.Typer(
    name="bilateral",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Trained bilateral Transformers, exported, verified and served.

    A checkpoint becomes an ONNX file (**export**), is compared with the model that was trained
    (**parity**), enters Triton's model repository (**repository add**), is served over
    gRPC (**serve**), asked (**infer**) and timed (**bench**).

    Exit codes: 0 done; 1 done, and something failed; 2 wrong input, nothing was written;
    130 interrupted.
    """,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bilateral {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version
