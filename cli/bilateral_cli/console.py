"""The consoles of every command: tables and progress for people, `--json` for machines.

Names, labels and messages come from elsewhere, so both consoles print a `str` as it is: nothing in
it is markup. Coloured text is made with `styled`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import BaseModel
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TimeElapsedColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text

from bilateral_export.errors import UserError
from bilateral_export.files import to_json

if TYPE_CHECKING:
    from bilateral_benchmarks.report.result import Result

# Tables in a file or a pipe are as wide as they need to be: there is no screen to fit them to.
UNBOUNDED = 1000

# A terminal obeys control characters; a label must not be able to give it orders.
_CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"
}


def styled(text: object, style: str = "") -> Text:
    """Return text as it is, in a style such as "bold red"; control characters are escaped."""
    return Text(str(text).translate(_CONTROL), style=style)


class _LiteralStatus(Status):
    """A status line whose text is never markup."""

    def update(self, status: object = None, **options: Any) -> None:
        super().update(None if status is None else styled(status), **options)


class DescriptionColumn(ProgressColumn):
    """The description in a progress display, printed as it is."""

    def render(self, task: Task) -> Text:
        """Return the description, without markup."""
        return styled(task.description)


class LiteralConsole(Console):
    """A console on which no string is markup or an emoji's name, not even in tables."""

    def render_str(self, text: str, *, style: Any = "", **options: Any) -> Text:
        """Return a string as text, whatever the caller's options say of markup."""
        options |= {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(text.translate(_CONTROL), style=style, **options)

    def status(self, status: object, **options: Any) -> Status:
        """Show what is being done until the end of the block; `update` changes it."""
        return _LiteralStatus(styled(status), console=self, **options)


def _console(stderr: bool) -> LiteralConsole:
    stream = sys.stderr if stderr else sys.stdout
    on_screen = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
    return LiteralConsole(stderr=stderr, highlight=False, width=None if on_screen else UNBOUNDED)


# Results go to standard output, progress and notes to standard error.
out = _console(stderr=False)
notes = _console(stderr=True)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document for machines and nothing else.")
]
UrlOption = Annotated[
    str,
    typer.Option("--url", metavar="HOST:PORT", help="gRPC address of the Triton server."),
]
ServersOption = Annotated[
    str,
    typer.Option(
        "--url",
        metavar="HOST:PORT",
        help="gRPC address of the Triton server, or http(s)://HOST:PORT; several with commas.",
    ),
]
RepositoryOption = Annotated[
    str,
    typer.Option("--repository", metavar="DIRECTORY", help="Triton's model repository."),
]
DEFAULT_URL = "localhost:8001"
DEFAULT_REPOSITORY = "model_repository"


def choice(value: str, choices: object, option: str) -> Any:
    """Return an option's value, one of a `Literal`'s.

    Raises:
        UserError: It is another.
    """
    known = get_args(choices)
    if value not in known:
        raise UserError(f"{option} is {value!r}", f"Use one of {', '.join(known)}.")
    return value


def print_json(value: BaseModel | dict[str, Any] | list[Any]) -> None:
    """Print one JSON document to standard output.

    Raises:
        UserError: An answer has a number that is not finite.
    """
    sys.stdout.write(to_json(value, indent=2))


def print_page(found: Result) -> None:
    """Print the Markdown page of a benchmark's result to standard output."""
    from bilateral_benchmarks.report.files import page

    sys.stdout.write(page(found))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> Table:
    """Return a Rich table; columns whose name starts with '>' are aligned to the right.

    A cell that is a `Text` keeps its style; any other is printed as its `str` is.
    """
    made = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        right = column.startswith(">")
        # On a narrow screen names are folded: cut, they cannot be distinguished.
        justify: JustifyMethod = "right" if right else "left"
        made.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return made


def progress() -> Progress:
    """Return a progress display on standard error that disappears when it is done."""
    return Progress(
        SpinnerColumn(),
        DescriptionColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        console=notes,
        transient=True,
    )
