"""The files of documents and results: JSON, Markdown and HTML, written and read here only."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.render import html, markdown
from bilateral_benchmarks.report.result import Result
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, to_json, write_text

Model = TypeVar("Model", bound=BaseModel)


def write_json(found: Document | Result, path: Path) -> None:
    """Write a document or a single result as JSON, whole or not at all."""
    write_text(path, to_json(found))


def write_pages(found: Document | Result, path: Path) -> list[Path]:
    """Write the Markdown and HTML pages beside `path`; return their paths."""
    if isinstance(found, Result):
        found = Document(title=found.page_title, items=(found,))
    pages = {path.with_suffix(".md"): markdown(found), path.with_suffix(".html"): html(found)}
    for page, text in pages.items():
        write_text(page, text)
    return list(pages)


def write(found: Document | Result, path: Path) -> None:
    """Write a JSON file, and beside it the Markdown and HTML pages."""
    write_json(found, path)
    write_pages(found, path)


def read(kind: type[Model], path: Path, problem: str, fix: str) -> Model:
    """Return what a JSON file holds, to show it or to resume the run that wrote it.

    Args:
        kind: Type of the document or result.
        path: The file.
        problem: Error message for a file that holds something else, after its path.
        fix: What the user can do about it.

    Raises:
        UserError: The file is missing or holds something else.
    """
    require_file(path, "report")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} {problem}", fix) from error
