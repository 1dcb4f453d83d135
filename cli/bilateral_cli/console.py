"""How every command prints: tables and progress for people, `--json` for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

# Results go to standard output, everything about how they come about to standard error.
out = Console()
notes = Console(stderr=True)

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
        made.add_column(column.removeprefix(">"), justify="right" if right else "left")
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
