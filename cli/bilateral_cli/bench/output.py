"""How results are printed and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from bilateral_cli.console import UNBOUNDED, notes, out, print_json, table

if TYPE_CHECKING:
    from bilateral_benchmarks import tables
    from bilateral_benchmarks.document import Document
    from bilateral_benchmarks.report import Report


def finish_document(document: Document, output: Path | None, json: bool) -> None:
    """Print a document, and write it where asked."""
    from bilateral_benchmarks.document import save_document
    from bilateral_benchmarks.tables import tables_of

    if output is not None:
        save_document(document, output)
        notes.print(f"Wrote {output}")
    if json:
        print_json(document)
        return
    for item in document.items:
        for found in tables_of(item):
            print_table(found)
            for note in found.notes:
                notes.print(note, markup=False, highlight=False)


def print_table(wide: tables.Table) -> None:
    """Print a table, or its rows one after the other where the screen is too narrow for it."""
    # What a runtime says may be in brackets, as Rich's markup is.
    rows = [[escape(cell) for cell in row] for row in wide.rows]
    made = table(wide.columns, rows, title=escape(wide.title))
    unbounded = out.options.update(width=UNBOUNDED)
    if out.measure(made, options=unbounded).minimum <= out.width:
        out.print(made)
        return
    out.print(wide.title, style="italic", markup=False)
    for name, *values in wide.rows:
        told = zip(wide.columns[1:], values, strict=True)
        out.print(
            f"  {name}: "
            + ", ".join(f"{column.removeprefix('>')} {value}" for column, value in told if value),
            markup=False,
            highlight=False,
        )


def finish(report: Report, output: Path | None, json: bool) -> None:
    """Write and print the report of one measurement."""
    from bilateral_benchmarks.document import Document

    finish_document(Document(title=report.subject, items=(report,)), output, json)


def write_pages(document: Document, path: Path) -> None:
    """Write the .md and .html pages beside `path`."""
    from bilateral_benchmarks.render import html, markdown
    from bilateral_export.files import write_text

    for suffix, text in ((".md", markdown(document)), (".html", html(document))):
        write_text(path.with_suffix(suffix), text)
        notes.print(f"Wrote {path.with_suffix(suffix)}")
