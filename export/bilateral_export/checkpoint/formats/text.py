"""Names and documents from outside: read with a limit, shown with a limit."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from bilateral_export.errors import UserError
from bilateral_export.files import require_file

SHOWN = 5  # of many names in one message
_LONGEST_NAME = 80
# A card with a vocabulary of a million words has about a quarter of this.
_LARGEST_DOCUMENT = 64 << 20


def printable(text: object, longest: int = _LONGEST_NAME) -> str:
    """A text from outside for a message: control characters escaped, the end cut off."""
    text = str(text)
    if len(text) > longest:
        text = text[: longest - 3] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(names: Collection[object], separator: str = ", ", longest: int = _LONGEST_NAME) -> str:
    """At most five of many names or facts, and how many more there are."""
    shown = separator.join(printable(name, longest) for name in list(names)[:SHOWN])
    rest = len(names) - SHOWN
    return f"{shown}{separator}and {rest} more" if rest > 0 else shown


def has_control_character(text: str) -> bool:
    """Whether a text holds a character that a terminal would act on."""
    return any(unicodedata.category(character) == "Cc" for character in text)


def read_json(path: Path, what: str) -> Any:
    """Read a small JSON file.

    Raises:
        UserError: As `read_document`, or it is not JSON, or nested too deep.
    """
    try:
        return from_json(read_document(path, what))  # json.loads takes any depth
    except ValueError as error:
        raise UserError(f"{what} {path} is not JSON ({printable(error)})", "Correct it.") from error


def read_document(path: Path, what: str) -> str:
    """Read a small UTF-8 text file, without the byte-order mark that some editors write.

    Raises:
        UserError: The file cannot be read, is not UTF-8 or is larger than any such document.
    """
    if require_file(path, what).stat().st_size > _LARGEST_DOCUMENT:
        raise UserError(
            f"{what} {path} has more than {_LARGEST_DOCUMENT >> 20} MB", "Give another file."
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} {path} is not UTF-8 text (byte {error.start})", "Save it as UTF-8."
        ) from error
