"""Time and peak memory of attention against length, batch and depth; exponents with intervals."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.attention_model import write_attention
from bilateral_benchmarks.experiments.isolated import Isolated, measure_isolated
from bilateral_benchmarks.load.schedule import require_positive
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Line, Plot, line_plot
from bilateral_benchmarks.report.result import Quantity, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_export.lowering.attention_forms import Form
from bilateral_export.lowering.lower import lower

Axis = Literal["tokens", "batch", "depth"]
Interval = tuple[float, float]
# A class token before a square grid.
LENGTHS = (1025, 2026, 4097, 8101, 16385, 32762, 65537)
MULTIPLES = (1, 2, 4, 8, 16)
SIGMA = 0.02
# A fit leaves out the points where fixed costs rule.
_FIT_FROM = {"tokens": 1000, "batch": 1, "depth": 1}
# The N x N forms would need tens of GiB at the longest lengths; they fail at this limit instead.
_MEMORY_MIB = 12_000
# By so much a peak of memory differs from run to run: allocators grow in steps.
_MEMORY_SPREAD = 0.05


class Point(BaseModel):
    """One size."""

    model_config = ConfigDict(frozen=True)

    size: int
    measured: Isolated


class Series(BaseModel):
    """One form along one axis.

    Attributes:
        form: The lowering's form on ONNX Runtime's CPU provider.
        time_exponent: Of the fastest call, to which other load adds least; None with fewer than two
            sizes.
        memory_exponent: Of what a call needs on top of the weights.
        time_interval: 95% interval of the exponent, which contains what the line does not fit; None
            with fewer than three sizes, and in older files.
        memory_interval: The same.
    """

    model_config = ConfigDict(frozen=True)

    axis: Axis
    form: str
    points: tuple[Point, ...]
    time_exponent: float | None
    memory_exponent: float | None
    time_interval: Interval | None = None
    memory_interval: Interval | None = None


class Scaling(Result):
    """All series, and what they were measured on."""

    kind: Literal["growth"] = "growth"
    layer: str
    series: tuple[Series, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return time and memory by size."""
        rows = []
        for series in self.series:
            for point in series.points:
                m = point.measured
                failed = m.failure is not None
                rows.append(
                    (
                        series.form,
                        f"{series.axis} {point.size:,}",
                        "-" if failed else number(m.median_ms),
                        "-" if failed else number(m.fastest_ms),
                        "-" if failed else number(m.run_mib),
                        m.failure or "",
                    )
                )
            if series.time_exponent is not None and series.memory_exponent is not None:
                rows.append(
                    (
                        series.form,
                        f"exponent in {series.axis}",
                        "",
                        _shown(series.time_exponent, series.time_interval),
                        _shown(series.memory_exponent, series.memory_interval),
                        "",
                    )
                )
        title = f"Growth of attention: {self.layer}"
        return [
            Table(
                title, ("form", "", ">median ms", ">fastest ms", ">MiB per call", ""), tuple(rows)
            )
        ]

    def quantities(self) -> list[Quantity]:
        """Return time and memory at each size, and the exponents of time."""
        found = []
        for series in self.series:
            if series.time_exponent is not None and series.time_interval is not None:
                name, ends = f"{series.form}, {series.axis}", series.time_interval
                measure = "exponent of time"
                found.append(Quantity(name, measure, series.time_exponent, *ends, self.context))
            for point in series.points:
                name, m = f"{series.form}, {series.axis} {point.size:,}", point.measured
                if m.median_ms:
                    found.append(
                        Quantity(name, "p50, ms", m.median_ms, m.low_ms, m.high_ms, self.context)
                    )
                if m.run_mib:
                    low, high = ((1 + sign * _MEMORY_SPREAD) * m.run_mib for sign in (-1, 1))
                    found.append(Quantity(name, "MiB", m.run_mib, low, high, self.context))
        return found

    def plots(self) -> list[Plot]:
        """Return time and memory against the number of tokens."""
        plots = []
        for label, field in (("median ms", "median_ms"), ("MiB per call", "run_mib")):
            lines = []
            for series in (s for s in self.series if s.axis == "tokens"):
                points = [p for p in series.points if p.measured.failure is None]
                values = [max(getattr(p.measured, field) or 0.0, 0.1) for p in points]
                lines.append(Line(series.form, [p.size for p in points], values))
            drawn = line_plot(lines, "tokens", label, log_x=True, log_y=True)
            plots.append(Plot(f"{label} against the number of tokens", drawn))
        return plots


def measure_scaling(
    lengths: Sequence[int] = LENGTHS,
    forms: Sequence[Form] = ("tiles", "augmented", "decomposed"),
    *,
    batches: Sequence[int] = MULTIPLES,
    depths: Sequence[int] = MULTIPLES,
    sigma: float = SIGMA,
    seconds: float = 1.0,
    on_point: Callable[[str], None] | None = None,
) -> Scaling:
    """Measure one attention layer (6 heads of 64, both kernels Gaussian) along each axis.

    Batch and depth are varied at 1025 tokens. Every point is a fresh process.

    Args:
        lengths: Numbers of tokens.
        forms: Of the lowering for ONNX Runtime's CPU provider.
        batches: Batch sizes.
        depths: Layers, one after the other.
        sigma: Every head's bandwidth, as a share of the grid's extent.
        seconds: For each point.
        on_point: Called before each.

    Raises:
        UserError: The seconds for each point is not a positive number.
    """
    require_positive(seconds, f"{seconds:g} seconds for each point")
    axes: dict[Axis, Sequence[int]] = {"tokens": lengths, "batch": batches, "depth": depths}
    series = []
    with tempfile.TemporaryDirectory() as scratch:
        for form in forms:
            for axis, sizes in axes.items():
                points = []
                for size in sizes:
                    if on_point:
                        on_point(f"{form}, {axis} {size}")
                    measured = _measure(Path(scratch), form, axis, size, sigma, seconds)
                    points.append(Point(size=size, measured=measured))
                series.append(_series(axis, form, points))
    return Scaling(
        layer="6 heads of 64, gaussian range and spatial kernels, with projections, "
        f"sigma {sigma:.2g} of the grid's extent",
        series=tuple(series),
        context=Context.now(),
    )


def exponent(
    sizes: Sequence[float], values: Sequence[float]
) -> tuple[float | None, Interval | None]:
    """Return the power of the size that the values grow with, and its 95% interval (Student's).

    By least squares in logarithms; None where there are too few sizes.
    """
    from scipy import stats  # slow to import

    if len(sizes) < 2:
        return None, None
    fitted = stats.linregress(np.log(sizes), np.log(np.maximum(values, 1e-3)))
    slope = float(fitted.slope)
    if len(sizes) < 3:
        return slope, None
    half = float(fitted.stderr * stats.t.ppf(0.975, len(sizes) - 2))
    return slope, (slope - half, slope + half)


def _shown(value: float, interval: Interval | None) -> str:
    return number(value) + (f" ({between(*interval)})" if interval else "")


def _measure(
    scratch: Path, form: Form, axis: Axis, size: int, sigma: float, seconds: float
) -> Isolated:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    tokens = size if axis == "tokens" else 1025
    depth = size if axis == "depth" else 1
    canonical = write_attention(folder / "canonical.onnx", tokens, depth=depth, sigma=sigma)
    # The gate would take longer than the measurement; `bilateral bench tiles` has the errors.
    target = folder / "lowered.onnx"
    lowered = lower(canonical, "onnxruntime-cpu", target, form=form, factor=math.inf)
    forms = {site.form for site in lowered.lowering.sites}
    if forms != {form}:
        reasons = lowered.lowering.sites[0].refused
        return Isolated(failure=f"not {form}: {'; '.join(reasons)}")
    batch = size if axis == "batch" else 1
    result = measure_isolated(
        lowered.path, "onnxruntime", batch=batch, seconds=seconds, memory_mib=_MEMORY_MIB
    )
    shutil.rmtree(folder)
    return result


def _series(axis: Axis, form: Form, points: list[Point]) -> Series:
    fitted = [
        (point.size, point.measured)
        for point in points
        if point.measured.failure is None and point.size >= _FIT_FROM[axis]
    ]
    sizes = [float(size) for size, _ in fitted]
    time, time_interval = exponent(sizes, [m.fastest_ms or 0.0 for _, m in fitted])
    memory, memory_interval = exponent(sizes, [m.run_mib or 0.0 for _, m in fitted])
    return Series(
        axis=axis,
        form=form,
        points=tuple(points),
        time_exponent=time,
        memory_exponent=memory,
        time_interval=time_interval,
        memory_interval=memory_interval,
    )
