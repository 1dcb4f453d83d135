"""A document as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jinja2
import numpy as np
from markupsafe import Markup

from bilateral_benchmarks.experiments.breakdown import Breakdown
from bilateral_benchmarks.experiments.comparison import Comparison
from bilateral_benchmarks.experiments.crossover import Crossover
from bilateral_benchmarks.experiments.generator_limit import GeneratorLimit
from bilateral_benchmarks.experiments.operator_profile import Stages
from bilateral_benchmarks.experiments.overhead import Overhead
from bilateral_benchmarks.experiments.scaling import Growth
from bilateral_benchmarks.experiments.scenarios import ScenarioResult
from bilateral_benchmarks.experiments.sweep import Sweep
from bilateral_benchmarks.report.document import Document, Item
from bilateral_benchmarks.report.plots import Bar, Line, bar_plot, line_plot
from bilateral_benchmarks.report.result import Context, Report
from bilateral_benchmarks.report.tables import Table, tables_of

# The CDF is drawn up to here; what lies beyond is in the table, with its interval.
_PERCENTS = np.concatenate([np.arange(0.0, 99.0, 1.0), np.arange(99.0, 99.95, 0.1)])

# As many as the legend has room for.
_CURVES = 16


@dataclass(frozen=True)
class Plot:
    """A caption and an inline SVG."""

    caption: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """One result of the page."""

    tables: list[Table]
    plots: list[Plot]


def markdown(document: Document) -> str:
    """The document's tables, the machine and the commands."""
    lines = [f"# {document.title}", ""]
    for found in _facts(document):
        lines += [*(f"- {fact}" for fact in found), ""]
    lines += [f"- FAILED: {' '.join(failure.split())}" for failure in document.failures]
    for tables in _tables(document):
        for table in tables:
            lines += [f"## {table.title}", "", *_markdown_table(table), ""]
            lines += [f"{note}\n" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def html(document: Document) -> str:
    """One page with everything inside: no script, no font, no other file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bilateral_benchmarks"), autoescape=True
    )
    sections = [
        Section(tables, plots_of(item))
        for tables, item in zip(_tables(document), document.items, strict=True)
    ]
    overview = _cdfs([item for item in document.items if isinstance(item, Report)])
    return environment.get_template("report.html.j2").render(
        title=document.title,
        contexts=_facts(document),
        overview=overview,
        failures=document.failures,
        sections=sections,
    )


def plots_of(item: Item) -> list[Plot]:
    """What is drawn of one result."""
    if isinstance(item, Report):
        return _cdfs([item])
    if isinstance(item, (ScenarioResult, GeneratorLimit)):
        return _cdfs([item.report]) if item.report else []
    if isinstance(item, Sweep):
        reports = [point.report for point in item.points if point.report is not None]
        lines = [
            Line(
                f"p{percent:g}",
                [r.items_per_s for r in reports if r.response.at(percent)],
                [r.response.at(percent) or 0.0 for r in reports if r.response.at(percent)],
            )
            for percent in (50.0, 95.0, 99.0)
        ]
        curve = line_plot(lines, "items/s", "latency, ms", y_zero=True)
        names = [f"{item.axis} {point.value:g}" for point in item.points if point.report]
        return [Plot("Latency against throughput", Markup(curve)), *_cdfs(reports, names)]
    if isinstance(item, Breakdown):
        labels = [f"{part.name}, {part.mean_ms:.3g} ms" for part in item.parts]
        bars = [Bar(item.subject.partition(" at ")[0], [part.mean_ms for part in item.parts])]
        if item.in_process_ms is not None:
            bars.append(Bar("in process", [item.in_process_ms]))
        return [Plot("Mean latency by part", Markup(bar_plot(bars, labels, "ms")))]
    if isinstance(item, Comparison):
        shown = [row for row in item.rows if row.median is not None]
        rows = [Bar(row.name, [row.median.value_ms or 0.0]) for row in shown if row.median]
        return [Plot("Median of a call", Markup(bar_plot(rows, [], "ms")))]
    if isinstance(item, Overhead):
        rows = [Bar("in process", [item.in_process_p50_ms])]
        rows += [Bar(way.name, [way.p50_ms]) for way in item.ways]
        return [Plot("Median latency of one caller", Markup(bar_plot(rows, [], "ms")))]
    if isinstance(item, Crossover):
        return _crossover_plots(item)
    if isinstance(item, Stages):
        bars = [Bar(stage.name, [stage.ms]) for stage in item.stages]
        return [Plot("Time by kind of operator", Markup(bar_plot(bars, [], "ms")))]
    return _growth_plots(item)


def contexts(document: Document) -> list[Context]:
    """The first of each run behind a document: of a machine, a revision and a command."""
    found: dict[object, Context] = {}
    for item in document.items:
        context = _context(item)
        if context is not None:
            found.setdefault(_run(context), context)
    return list(found.values())


def facts(context: Context) -> list[str]:
    """Machine, versions, revision and command, a line each."""
    machine = context.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return [
        f"machine: {machine.summary}; {machine.memory_gib:g} GiB; {machine.system}; "
        f"governor {machine.governor or 'unknown'}; load {machine.load_average:g} at the start",
        f"versions: {versions}",
        f"revision: {context.git_revision or 'unknown'}; started {context.started}",
        f"command: {context.command}",
    ]


def _run(context: Context) -> object:
    machine = context.machine
    return machine.summary, tuple(machine.versions.items()), context.git_revision, context.command


def _facts(document: Document) -> list[list[str]]:
    """Facts of each run, numbered where there are several."""
    runs = [facts(context) for context in contexts(document)]
    if len(runs) < 2:
        return runs
    return [[f"run {number}", *run] for number, run in enumerate(runs, 1)]


def _tables(document: Document) -> list[list[Table]]:
    """Tables of each item, which say of which run they are where there are several."""
    runs = [_run(context) for context in contexts(document)]
    found = []
    for item in document.items:
        tables, context = tables_of(item), _context(item)
        if len(runs) > 1 and context is not None:
            note = f"From run {runs.index(_run(context)) + 1}."
            tables = [replace(table, notes=(*table.notes, note)) for table in tables]
        found.append(tables)
    return found


def _context(item: Item) -> Context | None:
    if item.context is not None:
        return item.context
    if isinstance(item, Sweep):
        return next((p.report.context for p in item.points if p.report is not None), None)
    if isinstance(item, (ScenarioResult, GeneratorLimit)) and item.report:
        return item.report.context
    return None


def _markdown_table(table: Table) -> list[str]:
    def row(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    names = tuple(column.removeprefix(">") for column in table.columns)
    rule = tuple("---:" if column.startswith(">") else "---" for column in table.columns)
    return [row(names), row(rule), *map(row, table.rows)]


def _cdfs(reports: list[Report], names: Sequence[str] = ()) -> list[Plot]:
    """One plot of all, named by what differs between them: their load, if nothing else is said."""
    if not reports:
        return []
    lines = []
    named = zip(reports, names or [str(report.load) for report in reports], strict=True)
    for report, name in itertools.islice(named, _CURVES):
        values = report.response.curve(_PERCENTS)
        lines.append(Line(name[:28], values.tolist(), _PERCENTS.tolist()))
    drawn = line_plot(lines, "response time, ms (logarithmic)", "percent of requests", log_x=True)
    return [Plot("Latency distribution, up to p99.9", Markup(drawn))]


def _crossover_plots(crossover: Crossover) -> list[Plot]:
    lines = []
    for kernel in crossover.measured:
        rows = [row for row in crossover.rows if row.range_kernel == kernel]
        lines.append(Line(kernel, [row.tokens for row in rows], [row.ratio for row in rows]))
    drawn = line_plot(lines, "tokens", "mask form's time over flash form's", log_x=True)
    return [Plot("How much faster the flash form is", Markup(drawn))]


def _growth_plots(growth: Growth) -> list[Plot]:
    plots = []
    for label, field in (("median ms", "median_ms"), ("MiB per call", "run_mib")):
        lines = []
        for series in (s for s in growth.series if s.axis == "tokens"):
            points = [p for p in series.points if p.measured.failure is None]
            values = [max(getattr(p.measured, field) or 0.0, 0.1) for p in points]
            lines.append(Line(series.form, [p.size for p in points], values))
        drawn = line_plot(lines, "tokens", label, log_x=True, log_y=True)
        plots.append(Plot(f"{label} against the number of tokens", Markup(drawn)))
    return plots
