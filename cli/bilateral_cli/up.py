"""`bilateral up`: a checkpoint to a checked server in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import (
    DEFAULT_REPOSITORY,
    RepositoryOption,
    notes,
    out,
    progress,
    styled,
)
from bilateral_cli.listening import HostOption, InsecureOption

if TYPE_CHECKING:
    from bilateral_benchmarks.end_to_end.up import Ready


@app.command()
def up(
    checkpoint: Annotated[Path, typer.Argument(help="The trained checkpoint.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the served model; the file's unless given.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    output: Annotated[
        Path, typer.Option(help="Directory for the ONNX file and the example request.")
    ] = Path("out"),
    example: Annotated[
        Path | None,
        typer.Option(help="A file to ask about in the printed commands; one is made if not given."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="As in `bilateral export`, where the checkpoint needs it.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="As in `bilateral export`: which weights to take.")
    ] = None,
    host: HostOption = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC service.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port of the HTTP service.")] = 8000,
    metrics_port: Annotated[
        int, typer.Option(help="Port of the Prometheus metrics; 0 turns them off.")
    ] = 8002,
    insecure: InsecureOption = False,
) -> None:
    """Export, check, lower, add and serve a checkpoint; then print how to ask it.

    It serves until Ctrl-C, or `bilateral down` in another terminal. Exit code 1 when what is served
    is not what was trained.

    Example: bilateral up export/checkpoints/digits_bilateral.safetensors
    """
    from bilateral_benchmarks.end_to_end.run_model import Steps
    from bilateral_benchmarks.end_to_end.up import up as run
    from bilateral_serving.server import ServerOptions

    options = ServerOptions(
        Path(repository),
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port or None,
        insecure=insecure,
    )
    with progress() as bar:
        task = bar.add_task("", total=None)

        def on_ready(ready: Ready) -> None:
            bar.stop()
            _show(ready)

        passed = run(
            checkpoint,
            options,
            folder=output,
            steps=Steps(
                lambda _, doing: bar.update(task, description=doing),
                lambda step, line: out.print(
                    styled(f"{step:>13}", "bold"), f" {line}", soft_wrap=True
                ),
            ),
            on_ready=on_ready,
            on_event=lambda text: notes.print(styled(text, "yellow"), soft_wrap=True),
            name=name,
            model=model,
            weights=weights,
            example=example,
        )
    if not passed:
        raise typer.Exit(EXIT_FAILED)
    notes.print("Stopped.")


def _show(ready: Ready) -> None:
    out.print(
        f"Ready after {ready.server.start_s:.1f} s at {ready.server.url} (gRPC) and"
        f" {ready.server.http_url} (HTTP). Ctrl-C or `bilateral down` stops it.",
        soft_wrap=True,
    )
    out.print("\nIn Python:\n")
    out.print(ready.python, soft_wrap=True)
    out.print("\nOver HTTP:\n")
    out.print(ready.curl, soft_wrap=True)
