"""`bilateral repository`: the models and versions that Triton serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from bilateral_serving.repository import Entry

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
        int | None, typer.Option(help="The version number; the next one if left out.")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Largest batch; 8 where the graph's batch is dynamic.")
    ] = None,
    instances: Annotated[int | None, typer.Option(help="Copies that run side by side.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one instance; 0 shares the cores evenly.")
    ] = None,
    max_queue_delay_us: Annotated[
        int | None,
        typer.Option(help="How long a request may wait for others in its batch, in microseconds."),
    ] = None,
    versions: Annotated[
        str | None, typer.Option(help="Which versions to serve: latest, latest:N, all, or 1,3.")
    ] = None,
    warmup: Annotated[
        bool | None,
        typer.Option("--warmup/--no-warmup", help="Run each instance once before it is ready."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu.")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="What runs the graph inside target python: onnxruntime or openvino."),
    ] = None,
    spinning: Annotated[
        bool | None,
        typer.Option(
            "--spinning/--no-spinning", help="Whether ONNX Runtime's threads wait busily."
        ),
    ] = None,
    lower: Annotated[
        bool,
        typer.Option("--lower/--no-lower", help="On a CPU, serve the form fastest on its runtime."),
    ] = True,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream",
            help="Serve a language model as text in, words out, one by one, instead of as tensors.",
        ),
    ] = None,
    interface: Annotated[
        Path | None,
        typer.Option(help="For target tensorrt: the ONNX file that the plan was built from."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Add a model file as a new version, with its config.pbtxt.

    The version appears whole or not at all. Its configuration is checked against the model's real
    inputs and outputs and against the versions that are there; then the version is opened and run
    once, as the server will. What another tool did to the file is said.

    Example: bilateral repository add digits digits.onnx --max-batch-size 32
    """
    from bilateral_export.artifact import load_graph
    from bilateral_export.graph.changes import changes
    from bilateral_serving import repository as repositories
    from bilateral_serving.config import Settings, Target

    given: dict[str, Any] = {
        "max_batch_size": max_batch_size,
        "instances": instances,
        "threads": threads,
        "max_queue_delay_us": max_queue_delay_us,
        "versions": versions,
        "warmup": warmup,
        "device": device,
        "runtime": runtime,
        "spinning": spinning,
        "stream": stream,
    }
    chosen = {option: value for option, value in given.items() if value is not None}
    with notes.status(f"Adding {model}"):
        entry = repositories.add(
            name,
            model,
            Path(repository),
            target=cast(Target, target),
            version=version,
            settings=Settings(**chosen) if chosen else None,
            interface=interface,
            lower=lower,
        )
    if json:
        print_json(_as_json(entry) | {"remarks": entry.remarks})
        return
    newest = entry.versions[-1]
    for remark in entry.remarks:
        notes.print(f"Note on {model}: {remark}", soft_wrap=True, markup=False, highlight=False)
    if entry.target == "tensorrt":
        _print_launch(newest.directory)
    else:
        for change in changes(load_graph(model, weights=False)):
            notes.print(f"{model} was changed since its export: {change}", markup=False)
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
        print_json([_as_json(entry) for entry in entries])
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
    """Show one model: inputs, outputs, versions, and what the artifact says of itself."""
    from bilateral_serving import repository as repositories

    entry = repositories.show(name, Path(repository))
    if json:
        print_json(_as_json(entry))
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
        int | None, typer.Option(help="Only this version; the whole model if left out.")
    ] = None,
) -> None:
    """Remove a model, or one version of it."""
    from bilateral_serving import repository as repositories

    repositories.remove(name, Path(repository), version=version)
    said = f"Removed {name}" + (f" version {version}" if version else "")
    out.print(said, soft_wrap=True, markup=False)


def _print_launch(version: Path) -> None:
    """What whoever starts tritonserver by hand must add; `bilateral serve` does it by itself."""
    from bilateral_serving.config import MODEL_FILES
    from bilateral_serving.repository.plan import launch_arguments

    try:
        arguments = launch_arguments([version / MODEL_FILES["tensorrt"]])
    except UserError as refusal:  # it is added all the same; another machine may serve it
        notes.print(f"Before it is served: {refusal}", soft_wrap=True, markup=False)
        return
    if arguments:
        notes.print(f"Start tritonserver with {' '.join(arguments)}", soft_wrap=True, markup=False)


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "directory": str(entry.directory),
        "target": entry.target,
        "max_batch_size": entry.max_batch_size,
        "instances": entry.instances,
        "threads": entry.threads,
        "max_queue_delay_us": entry.max_queue_delay_us,
        "device": entry.device,
        "inputs": [str(tensor) for tensor in entry.inputs],
        "outputs": [str(tensor) for tensor in entry.outputs],
        "versions": [
            {
                "number": version.number,
                "directory": str(version.directory),
                "bytes": version.size,
                "metadata": version.metadata.model_dump(mode="json") if version.metadata else None,
                "provenance": version.provenance.model_dump() if version.provenance else None,
            }
            for version in entry.versions
        ],
    }
