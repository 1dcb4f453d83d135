"""The common interface of all results: tables, plots, latencies and the measurement's context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Plot
from bilateral_benchmarks.report.tables import Table
from bilateral_benchmarks.statistics.percentiles import Percentile

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
# The percentiles of a latency that are compared.
COMPARED = (50.0, 99.0)
# The measure of a share of decisions: of right ones, or of those that stay what they were.
KEPT = "decisions kept"


@dataclass(frozen=True)
class Quantity:
    """One number that can be compared with the same one in another document.

    Attributes:
        name: What was measured.
        measure: Which number of it, with its unit, such as "p50, ms".
        value: The number, above 0.
        low: Lower end of its interval; None: it has none, and nothing can be said of a difference.
        high: Upper end.
        context: Where it was measured.
        more_is_better: Whether it is a rate, not a time.
        shapes: Of the inputs, by name; numbers of other shapes are of other measurements.
        problems: What speaks against it, in words.
        valid: Whether it counts at all.
    """

    name: str
    measure: str
    value: float
    low: float | None
    high: float | None
    context: Context
    more_is_better: bool = False
    shapes: Shapes = ()
    problems: tuple[str, ...] = ()
    valid: bool = True


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

    def quantities(self) -> Iterator[Quantity]:
        """Yield the percentiles that are compared, where the sample supports them."""
        for one in self.percentiles:
            if one.percent in COMPARED and one.value_ms:
                yield Quantity(
                    self.name,
                    f"p{one.percent:g}, ms",
                    one.value_ms,
                    one.low_ms,
                    one.high_ms,
                    self.context,
                    shapes=self.shapes,
                    problems=self.problems,
                    valid=self.valid,
                )


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
        """Return the latencies whose percentiles `bilateral bench compare` compares."""
        return []

    def quantities(self) -> list[Quantity]:
        """Return all that `bilateral bench compare` compares; first of all the latencies."""
        return [quantity for latency in self.latencies() for quantity in latency.quantities()]

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
