"""The files of documents and results: JSON, Markdown and HTML, written and read here only."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.render import html, markdown
from bilateral_benchmarks.report.result import Result
from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text

Model = TypeVar("Model", bound=BaseModel)


def write_json(found: BaseModel, path: Path) -> None:
    """Write a document or a single result as JSON, whole or not at all."""
    write_text(path, to_json(found))


def page(found: Document | Result) -> str:
    """Return the Markdown page of a document or of a single result."""
    return markdown(_document(found))


def write_pages(found: Document | Result, path: Path) -> list[Path]:
    """Write the Markdown and HTML pages beside `path`; return their paths."""
    pages = {
        path.with_suffix(".md"): page(found),
        path.with_suffix(".html"): html(_document(found)),
    }
    for target, text in pages.items():
        write_text(target, text)
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
        UserError: The file holds something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise UserError(f"{path} {problem}", fix) from error


def _document(found: Document | Result) -> Document:
    if isinstance(found, Result):
        return Document(title=found.page_title, items=(found,))
    return found
