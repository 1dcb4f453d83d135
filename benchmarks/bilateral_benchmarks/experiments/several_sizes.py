"""What a file of several sizes costs: against the file of one size, at that size, interleaved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import Latency, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.interleave import interleave
from bilateral_benchmarks.statistics.percentiles import Percentile
from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.checkpoint.known import card_of
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.checkpoint.several_sizes import for_sizes
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.registry import build, named
from bilateral_export.runners.lowered import LoweredRunner

SIZES = ((224, 224), (384, 384), (512, 384))
GOAL = 1.03


class SizeRow(BaseModel):
    """Both files at one size and batch.

    Attributes:
        size: Height and width.
        batch: Images in a call.
        one: Median of the file of this size.
        several: Median of the file of several sizes.
        ratio: The second over the first, paired by round.
        ratio_low: Lower end of its 95% interval.
        ratio_high: Upper end.
        forms: Of the attentions in both files.
        difference: Largest relative difference of the answers.
    """

    model_config = ConfigDict(frozen=True)

    size: tuple[int, int]
    batch: int
    one: Percentile
    several: Percentile
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    forms: tuple[str, str]
    difference: float


class SeveralSizes(Result):
    """The cost of a file of several sizes, lowered for ONNX Runtime on the CPU."""

    page_title: ClassVar[str] = "One file for several sizes"
    kind: Literal["several sizes"] = "several sizes"
    model: str
    rounds: int
    rows: tuple[SizeRow, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return a row for each size and batch."""
        rows = tuple(
            (
                f"{row.size[0]} x {row.size[1]}",
                str(row.batch),
                number(row.one.value_ms),
                number(row.several.value_ms),
                f"{row.ratio:.3f}",
                between(row.ratio_low, row.ratio_high),
                ", ".join(row.forms),
                f"{row.difference:.1e}",
                "met" if row.ratio <= GOAL else "missed",
            )
            for row in self.rows
        )
        columns = ("size", ">batch", ">one size, ms", ">several sizes, ms", ">ratio",
                   ">95% interval", "forms of attention", ">answers differ", "goal")  # fmt: skip
        notes = (
            f"ONNX Runtime on the CPU, {self.rounds} interleaved rounds, medians. The goal is"
            f" a ratio of {GOAL} at most.",
        )
        return [Table(f"Cost of several sizes: {self.model}", columns, rows, notes)]

    def latencies(self) -> list[Latency]:
        """Return both files' medians at each size and batch."""
        return [
            Latency(
                f"{self.model}, {what}, {row.size[0]}x{row.size[1]}, batch {row.batch}",
                (median,),
                self.context,
            )
            for row in self.rows
            for what, median in (("one size", row.one), ("several sizes", row.several))
        ]


def random_weights(model: str) -> Checkpoint:
    """Return a known image classifier with random weights."""
    torch.manual_seed(0)
    card = card_of(model, named(model))
    return Checkpoint(Path(model), "0" * 64, card, build(card.model).state_dict())


def measure_several_sizes(
    weights: Checkpoint,
    sizes: Sequence[tuple[int, int]] = SIZES,
    batches: Sequence[int] = (1,),
    *,
    rounds: int = 12,
    on_step: Callable[[str], None] | None = None,
) -> SeveralSizes:
    """Measure one file of all sizes against a file of each.

    Args:
        weights: An image classifier's.
        sizes: Heights and widths.
        batches: Batch sizes.
        rounds: Interleaved rounds of each comparison.
        on_step: Called with what is being done.
    """
    step = on_step or (lambda _: None)
    context = Context.now()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        step("exporting the file of several sizes")
        path = export_onnx(for_sizes(weights, sizes), Path(scratch) / "several.onnx").path
        with LoweredRunner(path) as several:
            for size in sizes:
                step(f"exporting for {size[0]} x {size[1]}")
                moved = at_resolution(weights, size)
                path = export_onnx(moved, Path(scratch) / "one.onnx").path
                with LoweredRunner(path) as one:
                    for batch in batches:
                        step(f"{size[0]} x {size[1]}, batch {batch}")
                        rows.append(_measure(one, several, size, batch, rounds))
    return SeveralSizes(model=weights.card.name, rounds=rounds, rows=tuple(rows), context=context)


def _measure(
    one: LoweredRunner, several: LoweredRunner, size: tuple[int, int], batch: int, rounds: int
) -> SizeRow:
    channels = one.inputs[0].shape[1]
    assert isinstance(channels, int)
    generator = np.random.default_rng(0)
    image = {"image": generator.standard_normal((batch, channels, *size)).astype(np.float32)}
    wanted, got = (
        next(iter(runner.run(image).values())).astype(np.float64) for runner in (one, several)
    )
    blocks = interleave(
        {"one": lambda: one.run(image), "several": lambda: several.run(image)}, rounds
    )
    ratio = blocks.ratio("one", "several")
    return SizeRow(
        size=size,
        batch=batch,
        one=blocks.median("one"),
        several=blocks.median("several"),
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        forms=(_form(one), _form(several)),
        difference=float(np.abs(np.subtract(got, wanted)).max() / np.abs(wanted).max()),
    )


def _form(runner: LoweredRunner) -> str:
    parts = (runner.lowering, runner.lowering.from_length) if runner.lowering else ()
    return " or ".join(part.sites[0].form for part in parts if part)
