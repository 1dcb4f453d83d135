"""The same measurement along one axis: concurrency, rate, batch or length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.load.run import OverloadedError
from bilateral_benchmarks.report.result import Context, Report
from bilateral_export.errors import UserError

Axis = Literal["concurrency", "rate", "batch", "length"]
AXES: tuple[Axis, ...] = get_args(Axis)


class Point(BaseModel):
    """One value of the axis; no report where the server could not keep up."""

    model_config = ConfigDict(frozen=True)

    value: float
    report: Report | None


class Sweep(BaseModel):
    """Reports along one axis.

    Attributes:
        context: Where it was measured; None in older files, whose reports say it.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    kind: Literal["sweep"] = "sweep"
    axis: Axis
    subject: str
    points: tuple[Point, ...]
    context: Context | None = None


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
