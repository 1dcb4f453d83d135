"""Tables of text, and how numbers and intervals are written in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A heading, notes and rows. Columns whose name starts with '>' are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def number(value: float | None) -> str:
    """Return a number with three significant digits, or a dash."""
    if value is None or value != value:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def between(low: float | None, high: float | None) -> str:
    """Return an interval; '?' where the sample sets no limit."""
    if low is None and high is None:
        return ""
    return f"{'?' if low is None else number(low)} .. {'?' if high is None else number(high)}"
