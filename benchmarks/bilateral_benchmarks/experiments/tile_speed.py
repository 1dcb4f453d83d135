"""Speed of attention in tiles over dense attention, by bandwidth; both flash, interleaved."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.attention_model import write_attention
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import Latency, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.interleave import interleave
from bilateral_benchmarks.statistics.percentiles import Percentile
from bilateral_export.lowering.attention_forms import Form
from bilateral_export.lowering.lower import lower
from bilateral_export.op.contract import RangeKernel
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

LENGTHS = (4097, 16385)
# Bandwidths as shares of the grid's extent; None: from one patch to a quarter of the grid.
CASES: tuple[tuple[float | None, RangeKernel], ...] = (
    (0.01, "gaussian"),
    (0.02, "gaussian"),
    (0.02, "dot"),
    (0.04, "gaussian"),
    (None, "gaussian"),
)
GOAL_TOKENS, GOAL_SIGMA, GOAL = 16_385, 0.02, 3.0
_FORMS: tuple[Form, Form] = ("augmented", "tiles")


class TileRow(BaseModel):
    """Both forms of one layer.

    Attributes:
        tokens: N.
        sigma: Every head's bandwidth, as a share of the grid's extent; None: as `CASES` has it.
        range_kernel: Of the attention.
        refused: Why it cannot be in tiles; then nothing was measured.
        dense: Median time of the dense form.
        tiled: The same in tiles.
        ratio: How much faster tiles are, paired by round; above 1 is faster.
        ratio_low: Lower end of its 95% interval.
        ratio_high: Upper end.
        dense_error: Relative error of the dense form against float64.
        tiled_error: The same in tiles.
        budget: What the lowering's gate allows.
    """

    model_config = ConfigDict(frozen=True)

    tokens: int
    sigma: float | None
    range_kernel: RangeKernel
    refused: str = ""
    dense: Percentile | None = None
    tiled: Percentile | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    dense_error: float | None = None
    tiled_error: float | None = None
    budget: float | None = None


class TileSpeed(Result):
    """All rows, and the goal."""

    kind: Literal["tiles"] = "tiles"
    layer: str
    rows: tuple[TileRow, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return both forms by length and bandwidth."""
        rows = tuple(
            (
                f"{row.tokens:,}",
                _sigma(row),
                row.range_kernel,
                "-" if row.dense is None else number(row.dense.value_ms),
                "-" if row.tiled is None else number(row.tiled.value_ms),
                number(row.ratio),
                row.refused or between(row.ratio_low, row.ratio_high),
                *(
                    "" if error is None else f"{error:.1e}"
                    for error in (row.dense_error, row.tiled_error, row.budget)
                ),
            )
            for row in self.rows
        )
        columns = (
            ">tokens", "sigma / extent", "range", ">dense ms", ">tiles ms", ">times faster",
            ">95% interval", ">dense error", ">tiles error", ">budget",
        )  # fmt: skip
        title = f"Attention in tiles: {self.layer}"
        return [Table(title, columns, rows, tuple(self._goals()))]

    def latencies(self) -> list[Latency]:
        """Return the medians of both forms."""
        return [
            Latency(
                f"{form}, {row.tokens} tokens, sigma {_sigma(row)}, {row.range_kernel}",
                (median,),
                self.context,
            )
            for row in self.rows
            for form, median in (("dense", row.dense), ("tiles", row.tiled))
            if median is not None
        ]

    def _goals(self) -> list[str]:
        return [
            f"Goal at {row.tokens:,} tokens, sigma {_sigma(row)}, {row.range_kernel} range kernel: "
            f"{GOAL:g} times as fast as dense; {'met' if row.ratio >= GOAL else 'missed'}, "
            f"{number(row.ratio)}."
            for row in self.rows
            if (row.tokens, row.sigma) == (GOAL_TOKENS, GOAL_SIGMA) and row.ratio is not None
        ]


def measure_tile_speed(
    lengths: Sequence[int] = LENGTHS,
    cases: Sequence[tuple[float | None, RangeKernel]] = CASES,
    *,
    rounds: int = 6,
    on_step: Callable[[str], None] | None = None,
) -> TileSpeed:
    """Measure a layer of 6 heads of 64 with projections in both forms.

    Args:
        lengths: Numbers of tokens: a class token and a grid.
        cases: Bandwidth as a share of the grid's extent, and range kernel.
        rounds: Of both forms, interleaved.
        on_step: Called before each row.
    """
    context = Context.now()
    rows = []
    for tokens in lengths:
        for sigma, range_kernel in cases:
            if on_step:
                on_step(f"tiles at {tokens} tokens, sigma {sigma}, {range_kernel} range kernel")
            rows.append(_measure(tokens, sigma, range_kernel, rounds))
    return TileSpeed(layer="6 heads of 64, with projections", rows=tuple(rows), context=context)


def _measure(tokens: int, sigma: float | None, range_kernel: RangeKernel, rounds: int) -> TileRow:
    row = TileRow(tokens=tokens, sigma=sigma, range_kernel=range_kernel)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        canonical = write_attention(
            folder / "canonical.onnx", tokens, range_kernel=range_kernel, sigma=sigma
        )
        calls: dict[str, Callable[[], object]] = {}
        errors = []
        for form in _FORMS:
            lowered = lower(canonical, "onnxruntime-cpu", folder / f"{form}.onnx", form=form)
            (site,) = lowered.lowering.sites
            if site.form != form:
                return row.model_copy(update={"refused": "; ".join(site.refused)})
            errors.append(site)
            runner = stack.enter_context(OnnxRuntimeRunner(lowered.path))
            calls[form] = functools.partial(runner.run, made_up(runner.inputs))
            calls[form]()
        blocks = interleave(calls, rounds)
    dense, tiled = _FORMS
    ratio = blocks.ratio(tiled, dense)
    return row.model_copy(
        update={
            "dense": blocks.median(dense),
            "tiled": blocks.median(tiled),
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "dense_error": errors[0].error,
            "tiled_error": errors[1].error,
            "budget": errors[1].budget,
        }
    )


def _sigma(row: TileRow) -> str:
    return "1 patch to 1/4" if row.sigma is None else f"{100 * row.sigma:g} %"
