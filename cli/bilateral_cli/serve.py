"""`bilateral serve`: tritonserver on a model repository, supervised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import DEFAULT_REPOSITORY, RepositoryOption, notes, out, progress
from bilateral_cli.listening import (
    ClientCaOption,
    HostOption,
    InsecureOption,
    TlsCertOption,
    TlsDevOption,
    TlsKeyOption,
    TokensOption,
    tls_files,
)

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from bilateral_serving.server import Progress, RunningServer
    from bilateral_serving.server.processes.log import LogLine

_STYLES = {"error": "red", "warning": "yellow", "info": "dim", "debug": "dim"}


@app.command()
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="The models to serve; all of them if none is named.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    host: HostOption = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC service.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port of the HTTP service; 0 turns it off.")] = 0,
    metrics_port: Annotated[
        int, typer.Option(help="Port of the Prometheus metrics; 0 turns them off.")
    ] = 8002,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    client_ca: ClientCaOption = None,
    tls_dev: TlsDevOption = None,
    tokens: TokensOption = None,
    insecure: InsecureOption = False,
    tritonserver: Annotated[
        Path | None,
        typer.Option(
            help="The tritonserver executable; by default it is looked for on PATH, in"
            " /opt/tritonserver and in the installed wheel."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail if any model cannot be served.")] = False,
    direct: Annotated[
        bool | None,
        typer.Option(
            "--direct/--front-door",
            help="Whether callers connect to tritonserver itself or to the front door, which keeps"
            " one caller from crashing tritonserver 2.51 for all; by default its version decides.",
        ),
    ] = None,
    start_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds until the server must be ready.")
    ] = 300.0,
    stop_timeout: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds that running requests get to finish at the end."),
    ] = 30.0,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the server's whole log.")
    ] = False,
) -> None:
    """Serve the model repository with tritonserver until Ctrl-C.

    Python, ports and models are checked before the server starts. It is ready when the last line
    says so, is restarted if it crashes or stops answering, and leaves no process behind.

    Example: bilateral serve digits
    """
    from bilateral_serving.server import ServerOptions, signals_counted
    from bilateral_serving.server import serve as serve_models

    options = ServerOptions(
        repository=Path(repository),
        models=tuple(models or ()),
        tritonserver=tritonserver,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port or None,
        metrics_port=metrics_port or None,
        direct=direct,
        strict=strict,
        start_timeout_s=start_timeout,
        stop_timeout_s=stop_timeout,
        tls=tls_files(tls_cert, tls_key, client_ca, tls_dev, host),
        tokens=tokens,
        insecure=insecure,
    )

    with signals_counted() as signals, progress() as bar:
        display = _Display(bar, verbose)
        serve_models(
            options,
            signals=signals,
            on_log=display.log,
            on_progress=display.progress,
            on_ready=display.ready,
            on_event=display.event,
        )
        notes.print("Stopped.")


class _Display:
    """What the terminal shows of a server: a bar while models load, then one line per event."""

    def __init__(self, bar: Bar, verbose: bool) -> None:
        self._bar, self._verbose = bar, verbose
        self._task = bar.add_task("Starting tritonserver", total=None)

    def log(self, line: LogLine) -> None:
        if self._verbose or line.level in ("error", "warning"):
            notes.print(line.text, style=_STYLES[line.level], markup=False, highlight=False)

    def event(self, text: str) -> None:
        notes.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def progress(self, done: Progress) -> None:
        loaded, total = len(done.loaded), done.total
        text = f"Loading {loaded} of {total} models"
        self._bar.update(self._task, description=text, completed=loaded, total=total)

    def ready(self, server: RunningServer) -> None:
        self._bar.stop()
        for name, reason in server.failed.items():
            self.event(f"Model '{name}' is not served: {reason}")
        out.print(
            f"Ready after {server.start_s:.1f} s: {', '.join(server.models)} at"
            f" {server.url} (gRPC). Ctrl-C stops it.",
            soft_wrap=True,
            markup=False,
        )
