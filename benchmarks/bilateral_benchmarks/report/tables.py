"""Every kind of result as rows of text: what the terminal, Markdown and HTML all show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bilateral_benchmarks.experiments.breakdown import Breakdown
from bilateral_benchmarks.experiments.comparison import Comparison, Row
from bilateral_benchmarks.experiments.crossover import Crossover
from bilateral_benchmarks.experiments.generator_limit import GeneratorLimit
from bilateral_benchmarks.experiments.operator_profile import Stages
from bilateral_benchmarks.experiments.overhead import Overhead
from bilateral_benchmarks.experiments.scaling import Growth
from bilateral_benchmarks.experiments.scenarios import ScenarioResult
from bilateral_benchmarks.experiments.sweep import Sweep
from bilateral_benchmarks.load.rate_search import Probe
from bilateral_benchmarks.report.document import Item
from bilateral_benchmarks.report.gemm_peak import Goal
from bilateral_benchmarks.report.result import Report


@dataclass(frozen=True)
class Table:
    """A heading, notes and rows. Columns whose name starts with '>' are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables_of(item: Item) -> list[Table]:
    """The tables of one result."""
    if isinstance(item, Report):
        return [report_table(item)]
    if isinstance(item, Comparison):
        return [comparison_table(item)]
    if isinstance(item, Crossover):
        return [crossover_table(item)]
    if isinstance(item, Growth):
        return [growth_table(item)]
    if isinstance(item, Breakdown):
        return [breakdown_table(item)]
    if isinstance(item, Overhead):
        return [overhead_table(item)]
    if isinstance(item, GeneratorLimit):
        return [limit_table(item)]
    if isinstance(item, ScenarioResult):
        return [scenario_table(item)]
    if isinstance(item, Stages):
        return [stages_table(item)]
    return [sweep_table(item)]


def report_table(report: Report) -> Table:
    """Percentiles with their intervals."""
    rows = []
    kinds = [("response", report.response)]
    if report.lateness is not None:
        kinds += [("service", report.service), ("send delay", report.lateness)]
    for kind, latency in kinds:
        for percentile in latency.percentiles:
            if percentile.value_ms is None:
                value, interval = "-", f"needs {percentile.needed:,} requests"
            else:
                value = number(percentile.value_ms)
                interval = between(percentile.low_ms, percentile.high_ms)
            rows.append((kind, f"p{percentile.percent:g}", value, interval))
        rows.append((kind, "mean", number(latency.mean_ms), f"sd {number(latency.std_ms)}"))
        rows.append((kind, "max", number(latency.max_ms), ""))
    title = (
        f"{report.subject}, batch {report.batch}, {report.load}: "
        f"{report.throughput:.1f} requests/s, {report.requests:,} requests"
    )
    columns = ("latency", "", ">ms", ">95% interval")
    return Table(title, columns, tuple(rows), report.doubts)


def comparison_table(comparison: Comparison) -> Table:
    """Contenders side by side."""
    columns = (
        "",
        ">median ms",
        ">95% interval",
        ">fastest",
        f">times {comparison.baseline}",
        ">95% interval",
        ">of the GEMM limit",
        ">parity error",
        ">budget",
        "parity",
        ">MiB per call",
    )
    rates = "; ".join(f"{rate}, {rate.gflops:.0f}" for rate in comparison.gemm_rates)
    notes = [
        f"{comparison.gflop:.2f} GFLOP per call; {comparison.rounds} rounds. The GEMM limit is"
        f" {comparison.gemm_gflops:.0f} GFLOP/s in the same rounds, the fastest of the libraries'"
        f" products: {rates}."
    ]
    notes += goal_notes(comparison)
    rows = tuple(_comparison_row(row, len(columns)) for row in comparison.rows)
    title = f"{comparison.title}, batch {comparison.batch}"
    return Table(title, columns, rows, tuple(notes))


def goal_notes(comparison: Comparison) -> list[str]:
    """What became of each goal, in a sentence."""
    rows = {row.name: row for row in comparison.rows}
    return [_goal(goal, rows[goal.row]) for goal in comparison.goals if goal.row in rows]


def _goal(goal: Goal, row: Row) -> str:
    aim = f"Goal for {goal.row}: {goal.share:.0%} of the GEMM limit"
    if row.gemm_share is None:
        return f"{aim}; not measured ({row.absent})."
    points = 100 * (row.gemm_share - goal.share)
    judged = f"met, by {points:.0f}" if points >= 0 else f"missed, by {-points:.0f}"
    return f"{aim}; {judged} points."


def _comparison_row(row: Row, width: int) -> tuple[str, ...]:
    if row.median is None:
        return (row.name, row.absent or "", *[""] * (width - 2))
    return (
        row.name,
        number(row.median.value_ms),
        between(row.median.low_ms, row.median.high_ms),
        number(row.fastest_ms),
        number(row.ratio),
        between(row.ratio_low, row.ratio_high),
        "" if row.gemm_share is None else f"{row.gemm_share:.0%}",
        "" if row.parity_error is None else f"{row.parity_error:.1e}",
        "" if row.parity_budget is None else f"{row.parity_budget:.1e}",
        {True: "pass", False: "FAIL", None: ""}[row.parity_passed],
        "" if row.run_mib is None else f"{row.run_mib:.0f}",
    )


def crossover_table(crossover: Crossover) -> Table:
    """Both forms by length."""
    rows = tuple(
        (
            row.range_kernel,
            f"{row.tokens:,}",
            number(row.mask_ms),
            number(row.augmented_ms),
            number(row.ratio),
            between(row.ratio_low, row.ratio_high),
        )
        for row in crossover.rows
    )
    found = ", ".join(
        f"{kernel} range kernel, " + ("none of these" if first is None else f"{first:,} tokens")
        for kernel, first in crossover.measured.items()
    )
    notes = (
        f"The flash form is faster for certain from: {found}."
        f" The lowering prefers it from {crossover.rule:,} tokens on.",
    )
    columns = ("range", ">tokens", ">mask ms", ">flash ms", ">times faster", ">95% interval")
    return Table(f"Forms of attention by length: {crossover.layer}", columns, rows, notes)


def growth_table(growth: Growth) -> Table:
    """Time and memory by size."""
    rows = []
    for series in growth.series:
        for point in series.points:
            m = point.measured
            failed = m.failure is not None
            rows.append(
                (
                    series.form,
                    f"{series.axis} {point.size:,}",
                    "-" if failed else number(m.median_ms),
                    "-" if failed else number(m.run_mib),
                    m.failure or "",
                )
            )
        if series.time_exponent is not None and series.memory_exponent is not None:
            rows.append(
                (
                    series.form,
                    f"exponent in {series.axis}",
                    number(series.time_exponent),
                    number(series.memory_exponent),
                    "",
                )
            )
    title = f"Growth of attention: {growth.layer}"
    return Table(title, ("form", "", ">median ms", ">MiB per call", ""), tuple(rows))


def breakdown_table(breakdown: Breakdown) -> Table:
    """Parts of the mean latency."""
    whole = breakdown.measured_ms
    rows = [
        (part.name, number(part.mean_ms), f"{part.mean_ms / whole:.1%}", part.source)
        for part in breakdown.parts
    ]
    rows.append(("not explained", "", f"{breakdown.unexplained:+.1%}", ""))
    rows.append(("measured", number(whole), "100.0%", "client clock"))
    if breakdown.in_process_ms is not None:
        rows.append(("the model in process", number(breakdown.in_process_ms), "", "this process"))
    title = f"Where the time goes: {breakdown.subject}, batch {breakdown.batch}"
    return Table(title, ("part", ">mean ms", ">share", "source"), tuple(rows))


def overhead_table(overhead: Overhead) -> Table:
    """Ways to serve."""
    rows = [
        (
            "in process",
            number(overhead.in_process_p50_ms),
            "",
            number(overhead.in_process_throughput),
            "1",
            "",
        )
    ]
    rows += [
        (
            way.name,
            number(way.p50_ms),
            f"{way.overhead_ms:+.2f}",
            number(way.throughput),
            f"{way.share:.2f}",
            between(way.share_low, way.share_high),
        )
        for way in overhead.ways
    ]
    columns = ("", ">p50 ms", ">overhead ms", ">items/s", ">of in-process", ">95% interval")
    return Table(f"Serving overhead: {overhead.subject}", columns, tuple(rows))


def stages_table(stages: Stages) -> Table:
    """Time by kind of operator, and what of it the limit explains."""
    limit = stages.gemm_gflops
    total = sum(stage.ms for stage in stages.stages)
    rows = [
        (
            stage.name,
            number(stage.ms),
            f"{stage.ms / total:.0%}",
            number(stage.gflop) if stage.gflop else "",
            f"{1e3 * stage.gflop / stage.ms / limit:.0%}" if stage.gflop else "",
            number(1e3 * stage.gflop / limit) if stage.gflop else "0",
        )
        for stage in stages.stages
    ]
    work = sum(stage.gflop for stage in stages.stages)
    rows.append(
        ("all operators", number(total), "100%", number(work), "", number(1e3 * work / limit))
    )
    columns = ("", ">ms", ">share", ">GFLOP", ">of the GEMM limit", ">ms at the limit")
    notes = (
        f"A call takes {number(stages.whole_ms)} ms without the profiler, which adds a little to"
        f" every operator; the GEMM limit is {limit:.0f} GFLOP/s in the same rounds.",
    )
    return Table(f"Stages on ONNX Runtime: {stages.subject}", columns, tuple(rows), notes)


def scenario_table(result: ScenarioResult) -> Table:
    """The result, and the rates tried."""
    value = "none" if result.value is None else number(result.value)
    rows = [(result.metric, value, ""), *_probe_rows(result.probes)]
    subject = f": {result.report.subject}" if result.report else ""
    notes = result.report.doubts if result.report else ()
    return Table(f"{result.scenario}{subject}", ("", ">value", ""), tuple(rows), notes)


def limit_table(limit: GeneratorLimit) -> Table:
    """The highest rate that one process sent on time, and the rates tried."""
    value = "none" if limit.rate is None else f"{limit.rate:.0f}"
    metric = f"requests/s with a p99 send delay of at most {limit.bound_ms:g} ms"
    rows = [(metric, value, ""), *_probe_rows(limit.probes)]
    title = f"The generator's limit, one process: {limit.subject}"
    return Table(title, ("", ">value", ""), tuple(rows))


def sweep_table(sweep: Sweep) -> Table:
    """One row a value."""
    rows: list[tuple[str, ...]] = []
    for point in sweep.points:
        report = point.report
        if report is None:
            rows.append((f"{point.value:g}", "could not keep up", "", "", "", ""))
            continue
        percentiles = (number(report.response.at(p)) for p in (50.0, 95.0, 99.0))
        label = "" if report.valid and report.stable else report.problems[0]
        rows.append((f"{point.value:g}", *percentiles, f"{report.items_per_s:.1f}", label))
    columns = (f">{sweep.axis}", ">p50 ms", ">p95 ms", ">p99 ms", ">items/s", "")
    return Table(f"By {sweep.axis}: {sweep.subject}", columns, tuple(rows))


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    if value is None or value != value:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def between(low: float | None, high: float | None) -> str:
    """An interval; '?' where the sample sets no limit."""
    if low is None and high is None:
        return ""
    return f"{'?' if low is None else number(low)} .. {'?' if high is None else number(high)}"


def _probe_rows(probes: Sequence[Probe]) -> list[tuple[str, str, str]]:
    return [
        (f"tried {probe.rate:.1f} requests/s, p99 ms", number(probe.p99_ms), probe.why)
        for probe in probes
    ]
