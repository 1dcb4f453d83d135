"""The README's table of runtimes by model, made from a document."""

from __future__ import annotations

from pathlib import Path

from bilateral_benchmarks.experiments.comparison import Comparison
from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.tables import number
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, write_text

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
_SUFFIX = ", runtimes"


def summary(document: Document) -> str:
    """Markdown: median ms of every runtime, with its share of the GEMM peak.

    Raises:
        UserError: The document compares no runtimes.
    """
    found = [
        item
        for item in document.items
        if isinstance(item, Comparison) and item.title.endswith(_SUFFIX)
    ]
    if not found:
        raise UserError("the report compares no runtimes", "Make it with `bilateral bench suite`.")
    names = dict.fromkeys(row.name for item in found for row in item.rows if row.median)
    titles = [item.title.removesuffix(_SUFFIX) for item in found]
    lines = ["| median ms | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(found)]
    lines += [
        f"| {name} | " + " | ".join(_cell(item, name) for item in found) + " |" for name in names
    ]
    notes = [
        f"{t}: {note}" for item, t in zip(found, titles, strict=True) for note in item.goal_notes()
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def write_summary(document: Document, path: Path) -> None:
    """Put the summary between the two marks of a Markdown file.

    Raises:
        UserError: The file or the marks are missing.
    """
    text = require_file(path, "page").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(
            f"{path} has no place for the table", f"Add {BEGIN} and {END}, a line each."
        )
    write_text(path, f"{before}{BEGIN}\n{summary(document)}{END}{after}")


def _cell(item: Comparison, name: str) -> str:
    row = next((row for row in item.rows if row.name == name), None)
    if row is None or row.median is None:
        return ""
    text = number(row.median.value_ms)
    if item.gemm_rates and row.gemm_share is not None:
        text += f" ({row.gemm_share:.0%})"
    return text if row.parity_passed else f"{text}, fails parity"
