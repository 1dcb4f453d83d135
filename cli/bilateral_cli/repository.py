"""`bilateral repository`: the models and versions that Triton serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from bilateral_cli.app import app
from bilateral_cli.console import (
    DEFAULT_REPOSITORY,
    JsonOption,
    RepositoryOption,
    notes,
    out,
    print_json,
    table,
)

repository_app = typer.Typer(
    no_args_is_help=True,
    help="Add, list, show and remove the models that Triton serves.",
)
app.add_typer(repository_app, name="repository")

NameArgument = Annotated[str, typer.Argument(help="The name under which the model is served.")]


@repository_app.command()
def add(
    name: NameArgument,
    model: Annotated[Path, typer.Argument(help="The ONNX file, or the plan for target tensorrt.")],
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    target: Annotated[
        str,
        typer.Option(
            help="Triton's backend: python (runs on this machine, with ONNX Runtime inside),"
            " onnxruntime or tensorrt (in NVIDIA's container)."
        ),
    ] = "python",
    version: Annotated[
        int | None, typer.Option(help="The version number; by default the next one.")
    ] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Largest batch; by default 8 if the graph's batch is dynamic. With --stream: how"
            " many streams run at once."
        ),
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Copies of the model that run in parallel.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads per instance; 0 shares the cores evenly.")
    ] = None,
    max_queue_delay_us: Annotated[
        int | None,
        typer.Option(help="How long a request may wait for its batch to fill, in microseconds."),
    ] = None,
    versions: Annotated[
        str | None, typer.Option(help="Which versions to serve: latest, latest:N, all, or 1,3.")
    ] = None,
    warmup: Annotated[
        bool | None,
        typer.Option(
            "--warmup/--no-warmup", help="Run each instance once before the server is ready."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu.")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="What runs the graph inside target python: onnxruntime or openvino."),
    ] = None,
    spinning: Annotated[
        bool | None,
        typer.Option(
            "--spinning/--no-spinning",
            help="Whether ONNX Runtime's threads busy-wait during a request.",
        ),
    ] = None,
    lower: Annotated[
        bool,
        typer.Option(
            "--lower/--no-lower", help="On a CPU, serve the model lowered for its runtime."
        ),
    ] = True,
    for_triton: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASE",
            help="For target onnxruntime, the Triton release that will serve, such as 24.10:"
            " refuses a file that its ONNX Runtime cannot load.",
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream",
            help="Serve a language model as a stream of words instead of as tensors.",
        ),
    ] = None,
    raw: Annotated[
        bool | None,
        typer.Option(
            "--raw",
            help="Take files too (encoded images, texts), so that clients prepare nothing: labels,"
            " a mask or the likelihoods of words come back.",
        ),
    ] = None,
    parity: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            help="The report of `bilateral parity CHECKPOINT FILE --json` about this file. It must"
            " have passed, and is noted for rollouts, metrics and `bilateral top`.",
        ),
    ] = None,
    interface: Annotated[
        Path | None,
        typer.Option(help="For target tensorrt: the ONNX file that the plan was built from."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Add a model file as a new version, with its config.pbtxt.

    The version appears whole or not at all. Its configuration is checked against the model's inputs
    and outputs and against the other versions; then the version is loaded and run once, as the
    server will. Changes that other tools made to the file are listed.

    Example: bilateral repository add digits digits.onnx --max-batch-size 32
    """
    from bilateral_export.parity.report.document import read_report
    from bilateral_serving import repository as repositories
    from bilateral_serving.config import Settings, Target

    settings = Settings.given(
        max_batch_size=max_batch_size,
        instances=instances,
        threads=threads,
        max_queue_delay_us=max_queue_delay_us,
        versions=versions,
        warmup=warmup,
        device=device,
        runtime=runtime,
        spinning=spinning,
        stream=stream,
        raw=raw,
    )
    with notes.status(f"Adding {model}"):
        entry = repositories.add(
            name,
            model,
            Path(repository),
            target=cast(Target, target),
            version=version,
            settings=settings,
            interface=interface,
            lower=lower,
            for_triton=for_triton,
            parity=read_report(parity) if parity else None,
        )
    if json:
        print_json(entry.document | {"remarks": entry.remarks})
        return
    for note in repositories.notes_on(entry, model):
        notes.print(note, soft_wrap=True, markup=False, highlight=False)
    newest = entry.versions[-1]
    out.print(
        f"{newest.directory}: version {newest.number} of {entry.name}, target {entry.target},"
        f" batches up to {entry.max_batch_size}",
        soft_wrap=True,
        markup=False,
    )


@repository_app.command("list")
def list_models(
    repository: RepositoryOption = DEFAULT_REPOSITORY, json: JsonOption = False
) -> None:
    """List the models of the repository."""
    from bilateral_serving.repository import list_entries

    entries = list_entries(Path(repository))
    if json:
        print_json([entry.document for entry in entries])
        return
    rows = [
        (
            entry.name,
            entry.target,
            ", ".join(str(version.number) for version in entry.versions) or "none",
            entry.max_batch_size,
            f"{entry.instances} x {entry.threads or 'auto'}",
        )
        for entry in entries
    ]
    columns = ["model", "target", "versions", ">max batch", "instances x threads"]
    out.print(table(columns, rows, title=repository))


@repository_app.command()
def show(
    name: NameArgument, repository: RepositoryOption = DEFAULT_REPOSITORY, json: JsonOption = False
) -> None:
    """Show one model: inputs, outputs, versions and metadata."""
    from bilateral_serving import repository as repositories

    entry = repositories.show(name, Path(repository))
    if json:
        print_json(entry.document)
        return
    rows: list[tuple[str, object]] = [
        ("directory", entry.directory),
        ("target", entry.target),
        ("max batch size", entry.max_batch_size),
        ("instances", f"{entry.instances}, {entry.threads or 'auto'} threads each, {entry.device}"),
        ("queue delay", f"{entry.max_queue_delay_us} us"),
    ]
    rows += [("input", tensor) for tensor in entry.inputs]
    rows += [("output", tensor) for tensor in entry.outputs]
    rows += [("files", f"in input {entry.raw}")] if entry.raw else []
    for version in entry.versions:
        about = version.metadata
        said = f", {about.name} {version.precision}, weights {about.license}" if about else ""
        rows.append((f"version {version.number}", f"{version.size / 1e6:.1f} MB{said}"))
    out.print(table(["", name], rows))


@repository_app.command()
def remove(
    name: NameArgument,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    version: Annotated[
        int | None, typer.Option(help="Remove only this version; by default the whole model.")
    ] = None,
) -> None:
    """Remove a model, or one version of it."""
    from bilateral_serving import repository as repositories

    repositories.remove(name, Path(repository), version=version)
    said = f"Removed {name}" + (f" version {version}" if version else "")
    out.print(said, soft_wrap=True, markup=False)
