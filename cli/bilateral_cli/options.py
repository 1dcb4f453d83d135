"""Values of options: lists of numbers, sizes of images, and choices from what is known."""

from __future__ import annotations

import math
import re
from typing import Any

from bilateral_export.errors import UserError


def numbers(text: str, *, whole: bool, least: int = 1) -> list[float]:
    """Read a list such as 1,2,4.

    Args:
        text: The list.
        whole: Whether each must be a whole number of at least `least`; else any above 0.
        least: See above.

    Raises:
        UserError: It is none, or has a number that is not allowed.
    """
    try:
        found = [float(value) for value in text.split(",") if value.strip()]
    except ValueError as error:
        raise UserError(f"'{text}' is not a list of numbers", "Write it as 1,2,4.") from error
    for value in found:
        if whole and not (value.is_integer() and value >= least):
            raise UserError(f"{value:g} in '{text}'", f"Give whole numbers from {least} on.")
        if not 0 < value < math.inf:
            raise UserError(f"{value:g} in '{text}'", "Give numbers above 0.")
    if not found:
        raise UserError(f"'{text}' has no number", "Write it as 1,2,4.")
    return found


def parse_size(text: str, option: str) -> int | tuple[int, int]:
    """Return the side of a square, or height and width, of a text such as 224 or 224x112.

    Args:
        text: The size.
        option: Which was given it, for the message.

    Raises:
        UserError: It is none.
    """
    if not re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5})?", text):
        raise UserError(f"{option} {text} is not a size", "Give 224, or HEIGHTxWIDTH.")
    height, _, width = text.partition("x")
    return (int(height), int(width)) if width else int(height)


def parse_sizes(text: str, option: str) -> list[tuple[int, int]]:
    """Return heights and widths of a list such as 224,512x384; see `parse_size`.

    Raises:
        UserError: One is no size.
    """
    found = [parse_size(size, option) for size in text.split(",")]
    return [size if isinstance(size, tuple) else (size, size) for size in found]


def one_of(option: str, values: Any, known: Any) -> Any:
    """Return the values of an option, all that are known where none is given.

    Raises:
        UserError: One is unknown.
    """
    for value in values or ():
        if value not in known:
            raise UserError(f"{option} {value}", f"Use one of {', '.join(map(str, known))}.")
    return values or list(known)
