"""`bilateral token`: a bearer token for callers of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, notes, out, print_json


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="The caller, as the access log will name it.")],
    file: Annotated[
        Path, typer.Option(help="The file of tokens that the server is given with --tokens.")
    ] = Path("tokens.txt"),
    rate: Annotated[
        float | None, typer.Option(help="Requests a second that it allows; else any number.")
    ] = None,
    largest: Annotated[
        int | None, typer.Option(help="Bytes of its largest request; else the server's limit.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a bearer token and add its hash to the file of tokens.

    The token is shown once and stands nowhere. A server that runs takes it at once; to withdraw
    it, remove its line.

    Example: bilateral token alice --rate 100
    """
    from bilateral_serving.tokens import make_token

    made = make_token(name, file, rate=rate, largest=largest)
    if json:
        print_json({"name": name, "token": made, "file": str(file)})
        return
    out.print(made, soft_wrap=True, markup=False, highlight=False)
    notes.print(f"Added {name} to {file}. Keep the token: only its hash is there.", markup=False)
