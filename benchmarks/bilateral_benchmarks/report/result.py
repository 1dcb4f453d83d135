"""The common interface of all results: tables, plots, latencies and the measurement's context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Plot
from bilateral_benchmarks.report.tables import Table
from bilateral_benchmarks.statistics.percentiles import Percentile

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Latency:
    """One latency that can be compared with the same one in another document.

    Attributes:
        name: What was measured.
        percentiles: Its percentiles, each with its confidence interval.
        context: Where it was measured.
        shapes: Of the inputs, by name; latencies of other shapes are other measurements.
        problems: What speaks against the numbers, in words.
        valid: Whether the numbers count at all.
    """

    name: str
    percentiles: tuple[Percentile, ...]
    context: Context
    shapes: Shapes = ()
    problems: tuple[str, ...] = ()
    valid: bool = True


class Result(BaseModel):
    """What one experiment found; each experiment derives its own type from it.

    Attributes:
        kind: Name of the type in a document.
        context: Where it was measured; None in older files.
        page_title: Title of its pages where it is written to files of its own.
        page_text: Markdown below that title.
    """

    model_config = ConfigDict(frozen=True)

    page_title: ClassVar[str] = ""
    page_text: ClassVar[str] = ""

    schema_version: Literal[1] = 1
    kind: str
    context: Context | None = None

    def tables(self) -> list[Table]:
        """Return the rows of text that the terminal, Markdown and HTML all show."""
        raise NotImplementedError

    def plots(self) -> list[Plot]:
        """Return the figures of the HTML page."""
        return []

    def latencies(self) -> list[Latency]:
        """Return what `bilateral bench compare` compares."""
        return []

    def invalid(self) -> list[str]:
        """Return each run whose numbers do not count, with the reason."""
        return []

    def where(self) -> Context | None:
        """Return the context, wherever in the result it is kept."""
        return self.context

    def facts(self) -> list[str]:
        """Return machine, versions, revision and command, a line each, as far as they are known."""
        context = self.where()
        return context.facts() if context else []
