"""Live progress of a measurement: the numbers so far and the time left.

It is drawn on standard error and gone when the measurement is over; without a terminal nothing is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bilateral_cli.console import DescriptionColumn, notes, table

if TYPE_CHECKING:
    from bilateral_benchmarks.load.run import OnProgress
    from bilateral_benchmarks.statistics.interleave import Blocks


@contextlib.contextmanager
def one_measurement(what: str, seconds: float) -> Iterator[OnProgress]:
    """Show one measurement of so many seconds; yields its `on_progress`."""
    with measurements() as (begin, update):
        begin(what, seconds)
        yield update


@contextlib.contextmanager
def measurements() -> Iterator[tuple[Callable[[str, float], None], OnProgress]]:
    """Show measurements one after the other.

    Yields what to call before each, with its name and planned seconds, and its `on_progress`.
    """
    progress = _progress()
    task = progress.add_task("Starting", total=None)
    what, seconds = "", 0.0
    with Live(Group(progress), console=notes, transient=True) as live:

        def begin(name: str, planned: float) -> None:
            nonlocal what, seconds
            what, seconds = name, planned
            progress.reset(task, description=what, total=seconds)

        def update(elapsed: float, median_s: float | None) -> None:
            # Windows that do not agree make it longer than was planned.
            progress.update(task, completed=elapsed, total=max(seconds, elapsed))
            now = "-" if median_s is None else f"{1e3 * median_s:.2f}"
            columns = ("", ">p50 now, ms", ">seconds", ">planned")
            row = (what, now, f"{elapsed:.1f}", f"{seconds:.1f}")
            live.update(Group(progress, table(columns, [row])))

        yield begin, update


@dataclass(frozen=True)
class Shown:
    """What a longer experiment calls.

    Attributes:
        step: With what is being done.
        part: With the number of parts done, and of all.
        blocks: With a comparison's rounds so far, and how many there will be.
    """

    step: Callable[[str], None]
    part: Callable[[int, int], None]
    blocks: Callable[[Blocks, int], None]


@contextlib.contextmanager
def experiment() -> Iterator[Shown]:
    """Show an experiment of several steps, and the contenders of a comparison among them."""
    parts = _progress(MofNCompleteColumn())
    rounds = _progress(MofNCompleteColumn())
    steps = parts.add_task("Starting", total=None)
    turns = rounds.add_task("rounds", total=None, visible=False)
    with Live(Group(parts, rounds), console=notes, transient=True) as live:

        def step(what: str) -> None:
            parts.update(steps, description=what)
            rounds.reset(turns, visible=False)
            live.update(Group(parts, rounds))

        def part(done: int, of: int) -> None:
            parts.update(steps, completed=done, total=of)

        def blocks(so_far: Blocks, of: int) -> None:
            rounds.update(turns, completed=so_far.rounds, total=of, visible=True)
            live.update(Group(parts, rounds, _standing(so_far)))

        yield Shown(step, part, blocks)


def _progress(*columns: MofNCompleteColumn) -> Progress:
    return Progress(
        SpinnerColumn(),
        DescriptionColumn(),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=notes,
    )


def _standing(blocks: Blocks) -> Table:
    """Return every contender's p50 so far, and how it stands to the first."""
    shown = []
    for name in blocks.names:
        ratio = blocks.ratio(name, blocks.names[0]).value
        median, fastest = 1e3 * blocks.seconds(name), 1e3 * blocks.minimum(name)
        shown.append((name, f"{median:.2f}", f"{fastest:.2f}", f"{ratio:.2f}"))
    return table(("", ">p50 now, ms", ">fastest", f">times {blocks.names[0]}"), shown)
