"""`bilateral doctor`: diagnosis of a repository and the machine before a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import DEFAULT_REPOSITORY, JsonOption, out, print_json, styled, table

if TYPE_CHECKING:
    from bilateral_serving.doctor.findings import Diagnosis

_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


@app.command()
def doctor(
    repository: Annotated[Path, typer.Argument(help="The model repository to check.")] = Path(
        DEFAULT_REPOSITORY
    ),
    container: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASE",
            help="Release of NVIDIA's Triton container to serve in: 26.07.",
        ),
    ] = None,
    tensorrt: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="TensorRT version of the container, if its release is not in the table, "
            "such as 10.14.1.",
        ),
    ] = None,
    tritonserver: Annotated[
        Path | None,
        typer.Option(help="The tritonserver executable; by default it is searched for."),
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option(help="The plugin library that the server will load.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address that the server will listen on.")
    ] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC service.")] = 8001,
    http_port: Annotated[
        int, typer.Option(help="Port of the HTTP service; 0 turns it off.")
    ] = 8000,
    metrics_port: Annotated[
        int, typer.Option(help="Port of the metrics; 0 turns them off.")
    ] = 8002,
    run: Annotated[
        bool,
        typer.Option("--run/--no-run", help="Load every model file and run its warm-up once."),
    ] = True,
    json: JsonOption = False,
) -> None:
    """Check the machine and every model; print what would fail and how to fix it.

    Plans are checked against their manifests, TensorRT and the GPU, configurations against the
    model files; then labels, memory, ports and Python. Exit code 1 if any finding is an error, else
    0.

    Example: bilateral doctor model_repository --container 26.07
    """
    from bilateral_serving.doctor.diagnose import diagnose
    from bilateral_serving.doctor.machine import read_machine

    machine = read_machine(tritonserver, plugin, tensorrt, container)
    ports = {"grpc": grpc_port, "http": http_port or None, "metrics": metrics_port or None}
    diagnosis = diagnose(repository, machine, host, ports, run=run)
    if json:
        print_json(diagnosis)
    else:
        _print(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(EXIT_FAILED)


def _print(diagnosis: Diagnosis) -> None:
    out.print(table(["", "this machine"], list(diagnosis.facts.items())))
    for finding in diagnosis.findings:
        severity = styled(finding.severity, _STYLES[finding.severity])
        out.print(severity, f"{finding.subject}: {finding.problem}", soft_wrap=True)
        for line in (finding.why, finding.fix and f"-> {finding.fix}"):
            if line:
                out.print(f"    {line}", soft_wrap=True)
    errors = sum(finding.severity == "error" for finding in diagnosis.findings)
    warnings = sum(finding.severity == "warning" for finding in diagnosis.findings)
    counted = f"{diagnosis.repository}: {errors} errors, {warnings} warnings"
    out.print(counted, soft_wrap=True)
