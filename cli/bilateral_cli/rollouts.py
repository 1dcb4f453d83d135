"""`bilateral repository promote|rollback|canary|shadow|rollouts`: versions on a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.console import JsonOption, out, print_json
from bilateral_cli.repository import NameArgument, repository_app

if TYPE_CHECKING:
    from bilateral_serving.server.rollouts.messages import Outcome

VersionArgument = Annotated[int, typer.Argument(min=1, help="The version, as `list` shows it.")]
PortOption = Annotated[int, typer.Option(help="gRPC port of the server of this machine.")]
ParityOption = Annotated[
    Path | None,
    typer.Option(
        help="The report of `bilateral parity CHECKPOINT FILE --json` about the version's file;"
        " it must have passed. Not needed where the version was added with it."
    ),
]
UnjudgedOption = Annotated[
    bool, typer.Option("--unjudged", help="Serve a version without a report of parity.")
]
GapOption = Annotated[
    bool,
    typer.Option(
        "--gap",
        help="Unload the old version before the new one is loaded, where memory does not hold"
        " both. Requests wait meanwhile.",
    ),
]
ShareOption = Annotated[str, typer.Option(metavar="SHARE", help="Such as 5% or 0.05.")]


@repository_app.command()
def promote(
    name: NameArgument,
    version: VersionArgument,
    grpc_port: PortOption = 8001,
    parity: ParityOption = None,
    unjudged: UnjudgedOption = False,
    gap: GapOption = False,
    json: JsonOption = False,
) -> None:
    """Have a version answer all requests of a running server that name none.

    It must pass parity, the doctor and a real inference first, and is loaded beside the old one,
    which answers until then and stays loaded for a rollback. A version that fails replaces nothing.

    Example: bilateral repository promote digits 2 --parity parity.json
    """
    from bilateral_serving import rollout

    _show(
        name,
        rollout.promote(
            name, version, grpc_port=grpc_port, parity=parity, unjudged=unjudged, gap=gap
        ),
        json,
    )


@repository_app.command()
def rollback(
    name: NameArgument,
    version: Annotated[
        int | None, typer.Argument(min=1, help="The version to return to; the one before if none.")
    ] = None,
    grpc_port: PortOption = 8001,
    gap: GapOption = False,
    json: JsonOption = False,
) -> None:
    """End a canary or a shadow; without one, have the version of before answer again.

    Example: bilateral repository rollback digits
    """
    from bilateral_serving import rollout

    _show(name, rollout.rollback(name, version, grpc_port=grpc_port, gap=gap), json)


@repository_app.command()
def canary(
    name: NameArgument,
    version: VersionArgument,
    share: ShareOption = "5%",
    grpc_port: PortOption = 8001,
    parity: ParityOption = None,
    unjudged: UnjudgedOption = False,
    json: JsonOption = False,
) -> None:
    """Have a version answer a share of the requests; the old one's answers are compared with its.

    Ended by `promote` or `rollback`; `rollouts` shows how the answers compare.

    Example: bilateral repository canary digits 2 --share 5% --parity parity.json
    """
    from bilateral_serving import rollout

    found = rollout.canary(
        name, version, rollout.read_share(share), grpc_port=grpc_port, parity=parity,
        unjudged=unjudged,
    )  # fmt: skip
    _show(name, found, json)


@repository_app.command()
def shadow(
    name: NameArgument,
    version: VersionArgument,
    share: ShareOption = "100%",
    grpc_port: PortOption = 8001,
    parity: ParityOption = None,
    unjudged: UnjudgedOption = False,
    json: JsonOption = False,
) -> None:
    """Send a version copies of a share of the requests, and compare; callers notice nothing.

    Example: bilateral repository shadow digits 2 --parity parity.json
    """
    from bilateral_serving import rollout

    found = rollout.shadow(
        name, version, rollout.read_share(share), grpc_port=grpc_port, parity=parity,
        unjudged=unjudged,
    )  # fmt: skip
    _show(name, found, json)


@repository_app.command()
def rollouts(name: NameArgument, grpc_port: PortOption = 8001, json: JsonOption = False) -> None:
    """Show which version of a model a running server answers with, and how two compare."""
    from bilateral_serving import rollout

    _show(name, rollout.status(name, grpc_port=grpc_port), json)


def _show(name: str, outcome: Outcome, json: bool) -> None:
    from bilateral_serving.rollout.report import described, document

    if json:
        print_json(document(outcome))
        return
    for line in described(name, outcome):
        out.print(line, soft_wrap=True, markup=False)
