"""Printing and writing of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bilateral_cli.app import EXIT_FAILED
from bilateral_cli.console import UNBOUNDED, notes, out, print_json, styled, table

if TYPE_CHECKING:
    from bilateral_benchmarks.experiments.document import Item
    from bilateral_benchmarks.report import tables
    from bilateral_benchmarks.report.document import Document


def exit_if_failed(document: Document) -> None:
    """Say what is missing or invalid in a document, and end with code 1 if anything is."""
    for problem in document.problems:
        notes.print(styled("Failed:", "bold red"), problem, soft_wrap=True)
    if document.problems:
        raise typer.Exit(EXIT_FAILED)


def print_table(wide: tables.Table) -> None:
    """Print a table, or its rows one after the other where the screen is too narrow for it."""
    made = table(wide.columns, wide.rows, title=wide.title)
    unbounded = out.options.update(width=UNBOUNDED)
    if out.measure(made, options=unbounded).minimum <= out.width:
        out.print(made)
        return
    out.print(wide.title, style="italic")
    for name, *values in wide.rows:
        told = zip(wide.columns[1:], values, strict=True)
        out.print(
            f"  {name}: "
            + ", ".join(f"{column.removeprefix('>')} {value}" for column, value in told if value)
        )


def finish(found: Item, title: str, output: Path | None, json: bool) -> None:
    """Print a single result, and write it as a document where asked.

    Raises:
        typer.Exit: Code 1: a run is invalid.
    """
    finish_all([found], title, output, json)


def finish_all(found: Sequence[Item], title: str, output: Path | None, json: bool) -> None:
    """Print results, and write them as a document where asked.

    Raises:
        typer.Exit: Code 1: a run is invalid.
    """
    from bilateral_benchmarks.experiments.document import BenchDocument
    from bilateral_benchmarks.report.files import write_json

    document = BenchDocument(title=title, items=tuple(found))
    if output is not None:
        write_json(document, output)
        notes.print(f"Wrote {output}")
    if json:
        print_json(document)
    for table_ in () if json else (each for one in found for each in one.tables()):
        print_table(table_)
        for note in table_.notes:
            notes.print(note, soft_wrap=True)
    exit_if_failed(document)


def show_pages(document: Document, path: Path) -> None:
    """Write the .md and .html pages beside `path`."""
    from bilateral_benchmarks.report.files import write_pages

    for page in write_pages(document, path):
        notes.print(f"Wrote {page}")
