"""The Typer application that every command adds itself to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
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

    Options of connections stand before the command and can be given in the environment, too:
    BILATERAL_TLS_CA, BILATERAL_TLS_CERT, BILATERAL_TLS_KEY, BILATERAL_TOKEN_FILE.
    """,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bilateral {__version__}")
        raise typer.Exit


def _set(variable: str) -> Callable[[Path | None], None]:
    """Return what hands an option on through the environment, as processes of ours read it."""

    def keep(path: Path | None) -> None:
        if path is not None:
            os.environ[variable] = str(path)

    return keep


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            callback=_set("BILATERAL_TLS_CA"),
            help="Connect over TLS, to servers with a certificate of these authorities (PEM).",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            callback=_set("BILATERAL_TLS_CERT"), help="A certificate to show to servers (PEM)."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(callback=_set("BILATERAL_TLS_KEY"), help="The key of that certificate (PEM)."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            callback=_set("BILATERAL_TOKEN_FILE"), help="A file with a token to show to servers."
        ),
    ] = None,
) -> None:
    del version, tls_ca, tls_cert, tls_key, token_file
