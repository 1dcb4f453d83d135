"""How every command prints: tables and progress for people, `--json` for machines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

# Tables in a file or a pipe are as wide as they need to be: there is no screen to fit them to.
UNBOUNDED = 1000


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    on_screen = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if on_screen else UNBOUNDED)


# Results go to standard output, everything about how they come about to standard error.
out = _console(stderr=False)
notes = _console(stderr=True)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document for machines and nothing else.")
]
UrlOption = Annotated[
    str,
    typer.Option("--url", metavar="HOST:PORT", help="gRPC address of the Triton server."),
]
RepositoryOption = Annotated[
    str,
    typer.Option("--repository", metavar="DIRECTORY", help="Triton's model repository."),
]
DEFAULT_URL = "localhost:8001"
DEFAULT_REPOSITORY = "model_repository"


def print_json(value: BaseModel | dict[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document to standard output."""
    if isinstance(value, BaseModel):
        text = value.model_dump_json(indent=2)
    else:
        text = json.dumps(value, indent=2, default=str)
    sys.stdout.write(text + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> Table:
    """A Rich table; columns whose name starts with '>' are aligned to the right."""
    made = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        right = column.startswith(">")
        # On a narrow screen names are folded: cut, they could not be told apart.
        justify: JustifyMethod = "right" if right else "left"
        made.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def progress() -> Progress:
    """A progress display on standard error that disappears when it is done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=notes,
        transient=True,
    )
