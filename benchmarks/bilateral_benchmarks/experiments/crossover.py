"""The crossover length at which the flash form of attention becomes faster than the mask form."""

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
from bilateral_benchmarks.report.plots import Line, Plot, line_plot
from bilateral_benchmarks.report.result import Quantity, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.interleave import interleave
from bilateral_export.lowering.attention_forms import FLASH_LENGTH, Form
from bilateral_export.lowering.lower import lower
from bilateral_export.op.contract import RangeKernel
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

LENGTHS = (65, 197, 401, 577, 785, 1025)
RANGE_KERNELS: tuple[RangeKernel, ...] = ("gaussian", "dot")
_FORMS: tuple[Form, Form] = ("mask", "augmented")
# Several layers one after the other, as in a model: a single one stays in the cache.
_DEPTH = 4
_BLOCK_S = 0.05


class LengthRow(BaseModel):
    """Both forms at one length.

    Attributes:
        tokens: N.
        range_kernel: Of the attention; the Gaussian one costs the flash form one column more.
        mask_ms: Median of the mask form.
        augmented_ms: Median of the flash form.
        ratio: How much faster the flash form is, paired by round; above 1 is faster.
        ratio_low: Lower end of its 95% interval.
        ratio_high: Upper end.
    """

    model_config = ConfigDict(frozen=True)

    tokens: int
    range_kernel: RangeKernel
    mask_ms: float
    augmented_ms: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None


class Crossover(Result):
    """All lengths, and what the lowering does.

    Attributes:
        measured: By range kernel, the shortest length from which on the flash form was faster for
            certain; None if it was not at the longest.
        rule: `FLASH_LENGTH` of the lowering.
    """

    kind: Literal["crossover"] = "crossover"
    layer: str
    rows: tuple[LengthRow, ...]
    measured: dict[str, int | None]
    rule: int
    context: Context

    def tables(self) -> list[Table]:
        """Return both forms by length."""
        rows = tuple(
            (
                row.range_kernel,
                f"{row.tokens:,}",
                number(row.mask_ms),
                number(row.augmented_ms),
                number(row.ratio),
                between(row.ratio_low, row.ratio_high),
            )
            for row in self.rows
        )
        found = ", ".join(
            f"{kernel} range kernel, " + ("none of these" if first is None else f"{first:,} tokens")
            for kernel, first in self.measured.items()
        )
        notes = (
            f"The flash form is faster for certain from: {found}."
            f" The lowering prefers it from {self.rule:,} tokens on.",
        )
        columns = ("range", ">tokens", ">mask ms", ">flash ms", ">times faster", ">95% interval")
        return [Table(f"Forms of attention by length: {self.layer}", columns, rows, notes)]

    def quantities(self) -> list[Quantity]:
        """Return how much faster the flash form is at each length."""
        return [
            Quantity(
                f"{self.layer}, {row.range_kernel} range kernel, {row.tokens:,} tokens",
                "flash form, times faster",
                row.ratio,
                row.ratio_low,
                row.ratio_high,
                self.context,
                more_is_better=True,
            )
            for row in self.rows
        ]

    def plots(self) -> list[Plot]:
        """Return the ratio against the length."""
        lines = []
        for kernel in self.measured:
            rows = [row for row in self.rows if row.range_kernel == kernel]
            lines.append(Line(kernel, [row.tokens for row in rows], [row.ratio for row in rows]))
        drawn = line_plot(lines, "tokens", "mask form's time over flash form's", log_x=True)
        return [Plot("How much faster the flash form is", drawn)]


def measure_crossover(
    lengths: Sequence[int] = LENGTHS,
    *,
    rounds: int = 12,
    on_step: Callable[[str], None] | None = None,
) -> Crossover:
    """Measure layers of 6 heads of 64 with a Gaussian spatial kernel at each length."""
    context = Context.now()
    rows = []
    for range_kernel in RANGE_KERNELS:
        for tokens in lengths:
            if on_step:
                on_step(f"forms at {tokens} tokens, {range_kernel} range kernel")
            rows.append(_measure(tokens, range_kernel, rounds))
    return Crossover(
        layer=f"{_DEPTH} layers, 6 heads of 64, gaussian spatial kernel, with projections",
        rows=tuple(rows),
        measured={kernel: first_faster(rows, kernel) for kernel in RANGE_KERNELS},
        rule=FLASH_LENGTH,
        context=context,
    )


def first_faster(rows: Sequence[LengthRow], range_kernel: RangeKernel) -> int | None:
    """Return the shortest length from which on the flash form is faster with confidence."""
    found = None
    for row in sorted(rows, key=lambda row: -row.tokens):
        if row.range_kernel != range_kernel:
            continue
        if row.ratio_low is None or row.ratio_low <= 1:
            break
        found = row.tokens
    return found


def _measure(tokens: int, range_kernel: RangeKernel, rounds: int) -> LengthRow:
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        canonical = write_attention(
            folder / "canonical.onnx", tokens, depth=_DEPTH, range_kernel=range_kernel
        )
        calls: dict[str, Callable[[], object]] = {}
        for form in _FORMS:
            lowered = lower(canonical, "onnxruntime-cpu", folder / f"{form}.onnx", form=form)
            assert {site.form for site in lowered.lowering.sites} == {form}
            runner = stack.enter_context(OnnxRuntimeRunner(lowered.path))
            arrays = made_up(runner.inputs)
            runner.run(arrays)
            calls[form] = functools.partial(runner.run, arrays)
        blocks = interleave(calls, rounds, block_s=_BLOCK_S)
    mask, augmented = _FORMS
    ratio = blocks.ratio(augmented, mask)
    return LengthRow(
        tokens=tokens,
        range_kernel=range_kernel,
        mask_ms=1e3 * blocks.seconds(mask),
        augmented_ms=1e3 * blocks.seconds(augmented),
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
    )
