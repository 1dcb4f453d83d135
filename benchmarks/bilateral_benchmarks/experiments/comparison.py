"""Contenders side by side in one run: latency, ratio, rate, parity, memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.contenders import Absent, Contender
from bilateral_benchmarks.experiments.flops import model_flops
from bilateral_benchmarks.experiments.gemm_peak import Goal, Rate, fastest, qualify
from bilateral_benchmarks.experiments.isolated import measure_isolated
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Bar, Plot, bar_plot
from bilateral_benchmarks.report.result import Latency, Result
from bilateral_benchmarks.report.tables import Table, between, number
from bilateral_benchmarks.statistics.interleave import OnRound, interleave
from bilateral_benchmarks.statistics.percentiles import Percentile
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.parity.report.document import ParityRow

# Enough inputs for a verdict with confidence, few enough for a large model in float64.
_BATCHES, _ITEMS = (1, 3), 24


class Row(BaseModel):
    """One contender.

    Attributes:
        median: Median over the rounds of the rounds' medians, with its interval.
        fastest_ms: Fastest single call.
        ratio: How much faster than the baseline, paired by round; above 1 is faster.
        ratio_low: Lower end of its 95% interval.
        ratio_high: Upper end.
        gemm_share: The model's operations over what the fastest matrix product would have done in
            the same time, in the same rounds.
        parity_error: Relative error against FP64; None where it was not judged.
        parity_budget: What it may be: of eager torch in the same precision, times a factor.
        parity_passed: Whether error and decisions hold.
        run_mib: Peak memory of a call on top of the loaded weights, in a process of its own.
        absent: Why there are no numbers.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    median: Percentile | None = None
    fastest_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    gemm_share: float | None = None
    parity_error: float | None = None
    parity_budget: float | None = None
    parity_passed: bool | None = None
    run_mib: float | None = None
    absent: str | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table; without numbers, the reason alone."""
        if self.median is None:
            return (self.name, self.absent or "", *[""] * 9)
        return (
            self.name,
            number(self.median.value_ms),
            between(self.median.low_ms, self.median.high_ms),
            number(self.fastest_ms),
            number(self.ratio),
            between(self.ratio_low, self.ratio_high),
            "" if self.gemm_share is None else f"{self.gemm_share:.0%}",
            "" if self.parity_error is None else f"{self.parity_error:.1e}",
            "" if self.parity_budget is None else f"{self.parity_budget:.1e}",
            {True: "pass", False: "FAIL", None: ""}[self.parity_passed],
            "" if self.run_mib is None else f"{self.run_mib:.0f}",
        )


class Comparison(Result):
    """Rows in the order given; the first one present is the baseline.

    Attributes:
        gflop: Operations of a call of the exported file. A rewrite that leaves some out is faster
            for it; they still count.
        gemm_gflops: The GEMM peak: what the fastest library's product reached in these rounds.
        gemm_rates: Every library's product in its best size, the fastest first.
        goals: What shares of the limit were aimed at.
    """

    kind: Literal["comparison"] = "comparison"
    title: str
    baseline: str
    batch: int
    rounds: int
    gflop: float
    gemm_gflops: float
    gemm_rates: tuple[Rate, ...] = ()
    goals: tuple[Goal, ...] = ()
    rows: tuple[Row, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return the contenders side by side."""
        columns = (
            "",
            ">median ms",
            ">95% interval",
            ">fastest",
            f">times {self.baseline}",
            ">95% interval",
            ">of the GEMM peak",
            ">parity error",
            ">budget",
            "parity",
            ">MiB per call",
        )
        rates = "; ".join(f"{rate}, {rate.gflops:.0f}" for rate in self.gemm_rates)
        peak = (
            f"{self.gflop:.2f} GFLOP per call; {self.rounds} rounds. The GEMM peak is"
            f" {self.gemm_gflops:.0f} GFLOP/s in the same rounds, the fastest of the libraries'"
            f" products: {rates}."
        )
        title = f"{self.title}, batch {self.batch}"
        rows = tuple(row.cells() for row in self.rows)
        return [Table(title, columns, rows, (peak, *self.goal_notes()))]

    def goal_notes(self) -> list[str]:
        """Return what became of each goal, in a sentence."""
        rows = {row.name: row for row in self.rows}
        return [_judged(goal, rows[goal.row]) for goal in self.goals if goal.row in rows]

    def plots(self) -> list[Plot]:
        """Return the medians."""
        bars = [Bar(row.name, [row.median.value_ms or 0.0]) for row in self.rows if row.median]
        return [Plot("Median of a call", bar_plot(bars, [], "ms"))]

    def latencies(self) -> list[Latency]:
        """Return every contender's median."""
        found = []
        for row in self.rows:
            if row.median is not None:
                failed = ("fails parity",) if row.parity_passed is False else ()
                name = f"{self.title}, batch {self.batch}: {row.name}"
                found.append(
                    Latency(name, (row.median,), self.context, problems=failed, valid=not failed)
                )
        return found


def _judged(goal: Goal, row: Row) -> str:
    aim = f"Goal for {goal.row}: {goal.share:.0%} of the GEMM peak"
    if row.gemm_share is None:
        return f"{aim}; not measured ({row.absent})."
    points = 100 * (row.gemm_share - goal.share)
    judged = f"met, by {points:.0f}" if points >= 0 else f"missed, by {-points:.0f}"
    return f"{aim}; {judged} points."


def run_comparison(
    title: str,
    checkpoint: Checkpoint,
    exported: Path,
    contenders: Sequence[Contender | Absent],
    *,
    batch: int = 1,
    rounds: int = 15,
    memory: bool = False,
    goals: Sequence[Goal] = (),
    on_step: Callable[[str], None] | None = None,
    on_round: OnRound | None = None,
) -> Comparison:
    """Judge, then time, every contender.

    Args:
        title: What is compared.
        checkpoint: The trained weights, for the FP64 reference.
        exported: The canonical file, for counting operations.
        contenders: What to compare; the first one present is the baseline of the ratios.
        batch: Items in one call.
        rounds: Of interleaved blocks.
        memory: Whether to measure each ONNX contender's memory in a process of its own.
        goals: Shares of the GEMM peak that are aimed at.
        on_step: Called with what is being done.
        on_round: Called after each round of all contenders.
    """
    say = on_step or (lambda what: None)
    context = Context.now()
    present = [c for c in contenders if isinstance(c, Contender)]
    flops = model_flops(exported, batch)
    say("parity")
    parity = _parity(checkpoint, present)
    say("matrix products")
    products = qualify()
    calls: dict[str, Callable[[], object]] = {product.name: product.call for product in products}
    with contextlib.ExitStack() as stack:
        for one in present:
            say(f"warming up {one.name}")
            runner = stack.enter_context(one.runner)
            arrays = made_up(runner.inputs, batch)
            calls[one.name] = functools.partial(runner.run, arrays)
            runner.run(arrays)
        say(f"timing {title}")
        blocks = interleave(calls, rounds, on_round=on_round)
    baseline = present[0].name
    limit = fastest(products, blocks)
    rows = []
    for entry in contenders:
        if isinstance(entry, Absent):
            rows.append(Row(name=entry.name, absent=entry.reason))
            continue
        contender = entry
        isolated = None
        if memory and contender.model is not None:
            say(f"memory of {contender.name}")
            isolated = measure_isolated(
                contender.model, contender.runtime, batch=batch, seconds=0.2
            )
        ratio = blocks.ratio(contender.name, baseline)
        # Work over time, against the product's own in the same rounds.
        share = blocks.ratio(contender.name, limit.name).value * flops / limit.flops
        judged = parity[contender.name]
        rows.append(
            Row(
                name=contender.name,
                median=blocks.median(contender.name),
                fastest_ms=1e3 * blocks.minimum(contender.name),
                ratio=ratio.value,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                gemm_share=share,
                parity_error=judged.error,
                parity_budget=judged.budget,
                parity_passed=judged.passed,
                run_mib=isolated.run_mib if isolated else None,
            )
        )
    return Comparison(
        title=title,
        baseline=baseline,
        batch=batch,
        rounds=rounds,
        gflop=flops / 1e9,
        gemm_gflops=limit.rate(blocks).gflops,
        gemm_rates=tuple(
            sorted((product.rate(blocks) for product in products), key=lambda rate: -rate.gflops)
        ),
        goals=tuple(goals),
        rows=tuple(rows),
        context=context,
    )


def _parity(checkpoint: Checkpoint, contenders: Sequence[Contender]) -> dict[str, ParityRow]:
    """Return the verdict on each contender's first output."""
    model = checkpoint.build_model()
    samples = random_samples(model, batches=_BATCHES, items=_ITEMS)
    candidates = [Candidate(contender.runner, contender.precision) for contender in contenders]
    rows = compare(checkpoint, candidates, samples).rows
    outputs = len(rows) // len(candidates)
    return {contender.name: rows[index * outputs] for index, contender in enumerate(contenders)}
