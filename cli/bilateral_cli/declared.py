"""`bilateral repository apply|verify`: models as one file declares them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED
from bilateral_cli.console import (
    DEFAULT_REPOSITORY,
    DEFAULT_URL,
    JsonOption,
    RepositoryOption,
    out,
    print_json,
)
from bilateral_cli.repository import repository_app
from bilateral_export.errors import UserError


@repository_app.command()
def apply(
    document: Annotated[
        Path | None, typer.Argument(help="What is to be served: a YAML file.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove models that were applied before and are not in the file now."
        ),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of such a file instead.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the repository hold the models that a file declares.

    The file names each model's ONNX file or plan, how it is served and what it must answer. It is
    checked before anything moves; a model that is refused takes back what was added before it. What
    is as declared already stays, and so do models that the file does not name, unless --prune says
    otherwise; of those one that was added to since by other means is left. Of two who apply at once
    the second waits.

    Example: bilateral repository apply models.yaml
    """
    from bilateral_serving import declared

    if schema:
        print_json(declared.schema())
        return
    if document is None:
        raise UserError("no file was given", "Give a YAML file, or --schema.")
    done = declared.apply(declared.read(document), Path(repository), prune=prune)
    if json:
        print_json([dataclasses.asdict(one) for one in done])
        return
    for one in done:
        out.print(f"{one.name}: version {one.version}, {one.change}", markup=False)


@repository_app.command()
def verify(
    document: Annotated[Path, typer.Argument(help="The file that was applied.")],
    url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where to ask: HOST:PORT of gRPC, http://HOST:PORT of HTTP; may be given again.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Ask a running server the cases that a file declares, over each address.

    Exit code 1 when an answer is not what the file says.

    Example: bilateral repository verify models.yaml --url localhost:8001 --url http://localhost:8000
    """
    from bilateral_serving import declared

    verdicts = declared.verify(declared.read(document), tuple(url or [DEFAULT_URL]))
    wrong = [one for one in verdicts if one.problem]
    if json:
        print_json([dataclasses.asdict(one) for one in verdicts])
    else:
        for one in wrong:
            out.print(
                f"{one.model}, case {one.case} at {one.url}: {one.problem}",
                markup=False,
                soft_wrap=True,
            )
        out.print(f"{len(verdicts) - len(wrong)} of {len(verdicts)} answers are as declared.")
    if wrong:
        raise typer.Exit(EXIT_FAILED)
