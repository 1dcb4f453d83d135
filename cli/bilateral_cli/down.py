"""`bilateral down`: the end of a server that was started in another terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import notes, out


@app.command()
def down(
    grpc_port: Annotated[
        int | None, typer.Option(help="The server's gRPC port, if several servers run.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 60.0,
) -> None:
    """Stop the server that `bilateral up` or `bilateral serve` runs in another terminal.

    Requests under way are finished first.

    Example: bilateral down
    """
    from bilateral_serving.server import stop

    with notes.status("Stopping the server"):
        port = stop(grpc_port, timeout)
    out.print(f"Stopped the server on port {port}.")
