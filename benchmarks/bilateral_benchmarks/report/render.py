"""Results as Markdown and as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jinja2

from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.plots import Plot
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table


@dataclass(frozen=True)
class Section:
    """One result of the page."""

    tables: list[Table]
    plots: list[Plot]


def markdown(document: Document) -> str:
    """Return the document's tables, the machine and the commands."""
    lines = [f"# {document.title}", ""]
    for text in _texts(document):
        lines += [text, ""]
    for found in _facts(document):
        lines += [*(f"- {fact}" for fact in found), ""]
    lines += [f"- FAILED: {' '.join(failure.split())}" for failure in document.failures]
    for tables in _tables(document):
        for table in tables:
            lines += [f"## {table.title}", "", *_markdown_table(table), ""]
            lines += [f"{note}\n" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def html(document: Document) -> str:
    """Return one page with everything inside: no script, no font, no other file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bilateral_benchmarks.report"), autoescape=True
    )
    sections = [
        Section(tables, item.plots())
        for tables, item in zip(_tables(document), document.items, strict=True)
    ]
    return environment.get_template("report.html.j2").render(
        title=document.title,
        texts=_texts(document),
        contexts=_facts(document),
        failures=document.failures,
        sections=sections,
    )


def _texts(document: Document) -> list[str]:
    return [item.page_text for item in document.items if item.page_text]


def _run(item: Result) -> object:
    """Return what results of one run have in common; None where nothing is known of the run."""
    context = item.where()
    return context.run if context else tuple(item.facts()) or None


def _runs(document: Document) -> dict[object, list[str]]:
    """Return the facts of the first result of each run."""
    runs: dict[object, list[str]] = {}
    for item in document.items:
        if (run := _run(item)) is not None:
            runs.setdefault(run, item.facts())
    return runs


def _facts(document: Document) -> list[list[str]]:
    """Return the facts of each run, numbered where there are several."""
    runs = list(_runs(document).values())
    if len(runs) < 2:
        return runs
    return [[f"run {number}", *run] for number, run in enumerate(runs, 1)]


def _tables(document: Document) -> list[list[Table]]:
    """Return the tables of each result, which say of which run they are where there are several."""
    runs = list(_runs(document))
    found = []
    for item in document.items:
        tables, run = item.tables(), _run(item)
        if len(runs) > 1 and run is not None:
            note = f"From run {runs.index(run) + 1}."
            tables = [replace(table, notes=(*table.notes, note)) for table in tables]
        found.append(tables)
    return found


def _markdown_table(table: Table) -> list[str]:
    def row(cells: tuple[str, ...]) -> str:
        shown = (cell.replace("|", "\\|").replace("<", "\\<") for cell in cells)
        return f"| {' | '.join(shown)} |"

    names = tuple(column.removeprefix(">") for column in table.columns)
    rule = tuple("---:" if column.startswith(">") else "---" for column in table.columns)
    return [row(names), row(rule), *map(row, table.rows)]
