"""`bilateral deploy`: a model of the repository on Kubernetes, KServe, Compose or Docker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import DEFAULT_REPOSITORY, RepositoryOption, notes, out

if TYPE_CHECKING:
    from bilateral_serving.deploy import Kind

deploy_app = typer.Typer(
    no_args_is_help=True,
    help="Write the files that deploy a model, or compare them with what is deployed.",
)
app.add_typer(deploy_app, name="deploy")

_NameArgument = Annotated[str, typer.Argument(help="The model, as it is called in the repository.")]
_OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIRECTORY", help="Where the files are written.")
]
_ValuesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What the repository cannot know, as YAML; by default values.yaml in --out, which is"
        " written with the defaults where it is not there.",
    ),
]
_OUT = Path("deploy")


@deploy_app.command()
def kubernetes(
    name: _NameArgument,
    to: _OutOption = _OUT,
    values: _ValuesOption = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
) -> None:
    """Write kubernetes.yaml: the model as a Deployment, with all that belongs to it.

    A headless Service, an autoscaler on queue time (KEDA, or HPA with the Prometheus adapter), a
    disruption budget, a network policy, a PodMonitor, alerts and a dashboard. Image, limits, GPU
    and flags follow from the model. Run it again after the model or values.yaml has changed.

    Example: bilateral deploy kubernetes digits && kubectl apply -f deploy/kubernetes.yaml
    """
    _write("kubernetes", name, to, values, repository)


@deploy_app.command()
def kserve(
    name: _NameArgument,
    to: _OutOption = _OUT,
    values: _ValuesOption = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
) -> None:
    """Write kserve.yaml: an InferenceService of KServe (Standard mode) with a runtime of its own.

    With it come a disruption budget, a network policy, a PodMonitor, alerts and a dashboard.

    Example: bilateral deploy kserve digits && kubectl apply -f deploy/kserve.yaml
    """
    _write("kserve", name, to, values, repository)


@deploy_app.command()
def compose(
    name: _NameArgument,
    to: _OutOption = _OUT,
    values: _ValuesOption = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
) -> None:
    """Write compose.yaml: the model on one machine, nginx before its servers, Prometheus beside.

    The repository is mounted from where it lies. The Dockerfile of the image is written, too.

    Example: bilateral deploy compose digits && docker compose -f deploy/compose.yaml up
    """
    _write("compose", name, to, values, repository)


@deploy_app.command()
def docker(
    name: _NameArgument,
    to: _OutOption = _OUT,
    values: _ValuesOption = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
) -> None:
    """Write a Dockerfile: a small image for the CPU, or NVIDIA's with the plugin for a plan.

    The model repository is mounted at /models and not part of the image.

    Example: bilateral deploy docker digits && docker build -t bilateral-serve deploy
    """
    _write("docker", name, to, values, repository)


@deploy_app.command()
def diff(
    kind: Annotated[str, typer.Argument(help="kserve, kubernetes or compose.")],
    name: _NameArgument,
    deployed: Annotated[
        Path,
        typer.Argument(help="What is deployed: `kubectl get -f FILE -o yaml`, or a compose.yaml."),
    ],
    to: _OutOption = _OUT,
    values: _ValuesOption = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
) -> None:
    """Say where what is deployed differs from what the repository and the values imply.

    What a cluster adds by itself is left out; what somebody changed by hand is not. Exit code 1 if
    anything differs.

    Example: bilateral deploy diff kubernetes digits deployed.yaml
    """
    from bilateral_serving import deploy

    found = deploy.diff(_kind(kind), name, deployed, Path(repository), to, values)
    for line in found:
        out.print(line, soft_wrap=True)
    if found:
        raise typer.Exit(EXIT_FAILED)
    notes.print("No difference.")


def _kind(kind: str) -> Any:
    from bilateral_cli.console import choice
    from bilateral_serving.deploy import Kind

    return choice(kind, Kind, "kind")


def _write(kind: Kind, name: str, to: Path, values: Path | None, repository: str) -> None:
    from bilateral_serving import deploy

    written = deploy.write(kind, name, Path(repository), to, values)
    for file in written.files:
        out.print(str(file), soft_wrap=True)
    for remark in written.remarks:
        notes.print(f"{name}: {remark}", style="yellow", soft_wrap=True)
