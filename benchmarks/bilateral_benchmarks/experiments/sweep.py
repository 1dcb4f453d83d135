"""The same measurement along one axis: concurrency, rate, batch or length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.load.report import Report, cdf_plots
from bilateral_benchmarks.load.run import OverloadedError
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Line, Plot, line_plot
from bilateral_benchmarks.report.result import Latency, Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_export.errors import UserError

Axis = Literal["concurrency", "rate", "batch", "length"]
AXES: tuple[Axis, ...] = get_args(Axis)


class Point(BaseModel):
    """One value of the axis; no report where the server could not keep up."""

    model_config = ConfigDict(frozen=True)

    value: float
    report: Report | None


class Sweep(Result):
    """Reports along one axis."""

    kind: Literal["sweep"] = "sweep"
    axis: Axis
    subject: str
    points: tuple[Point, ...]

    def tables(self) -> list[Table]:
        """Return a row for each value."""
        rows: list[tuple[str, ...]] = []
        for point in self.points:
            report = point.report
            if report is None:
                rows.append((f"{point.value:g}", "could not keep up", "", "", "", ""))
                continue
            percentiles = (number(report.response.at(p)) for p in (50.0, 95.0, 99.0))
            label = "" if report.valid and report.stable else report.problems[0]
            rows.append((f"{point.value:g}", *percentiles, f"{report.items_per_s:.1f}", label))
        columns = (f">{self.axis}", ">p50 ms", ">p95 ms", ">p99 ms", ">items/s", "")
        return [Table(f"By {self.axis}: {self.subject}", columns, tuple(rows))]

    def plots(self) -> list[Plot]:
        """Return latency against throughput, and the distributions."""
        lines = []
        for percent in (50.0, 95.0, 99.0):
            found = [(r.items_per_s, r.response.at(percent)) for _, r in self.reports]
            known = [(x, y) for x, y in found if y]
            lines.append(Line(f"p{percent:g}", [x for x, _ in known], [y for _, y in known]))
        curve = line_plot(lines, "items/s", "latency, ms", y_zero=True)
        names = [f"{self.axis} {value:g}" for value, _ in self.reports]
        return [
            Plot("Latency against throughput", curve),
            *cdf_plots([report for _, report in self.reports], names),
        ]

    def latencies(self) -> list[Latency]:
        """Return the latency at each value."""
        return [r.latency("", f", {self.axis} {value:g}") for value, r in self.reports]

    def invalid(self) -> list[str]:
        """Return the runs that do not count, with the reason."""
        return [problem for _, report in self.reports for problem in report.invalid()]

    def where(self) -> Context | None:
        """Return the context; that of the first report in older files."""
        return self.context or next((report.context for _, report in self.reports), None)

    @property
    def reports(self) -> list[tuple[float, Report]]:
        """The values that the server kept up with, and their reports."""
        return [(point.value, point.report) for point in self.points if point.report]


def sweep(
    axis: Axis, values: Sequence[float], subject: str, measure: Callable[[float], Report]
) -> Sweep:
    """Measure at every value of an axis, in the given order.

    Args:
        axis: What changes.
        values: Its values.
        subject: What is measured.
        measure: Measures at one value.

    Raises:
        UserError: There are no values, or a measurement is impossible.
    """
    if not values:
        raise UserError(f"no values for {axis}", "Give some, such as 1,2,4.")
    context = Context.now()
    points = []
    for value in values:
        try:
            points.append(Point(value=value, report=measure(value)))
        except OverloadedError:
            points.append(Point(value=value, report=None))
    return Sweep(axis=axis, subject=subject, points=tuple(points), context=context)
