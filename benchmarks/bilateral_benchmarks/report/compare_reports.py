"""Two reports of the same measurement: faster, slower, or indistinguishable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bilateral_benchmarks.experiments.comparison import Comparison
from bilateral_benchmarks.experiments.scenarios import ScenarioResult
from bilateral_benchmarks.experiments.sweep import Sweep
from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.result import Context, Report
from bilateral_benchmarks.statistics.percentiles import Percentile
from bilateral_export.errors import UserError

Judgement = Literal["faster", "slower", "indistinguishable"]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
COMPARED = (50.0, 99.0)
# Differences below this are not worth a red build, however certain they are.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Verdict:
    """One percentile of one measurement in both documents.

    Attributes:
        what: The measurement.
        percent: The percentile.
        ratio: Its new value over the old; above 1 is slower.
        low: Least that the two confidence intervals allow; None: not limited.
        high: Most.
        judgement: Slower only if even `low` is more than TOLERANCE above 1; faster likewise.
        doubts: Why the difference may not be the model's: other machines, invalid runs.
        valid: Whether both runs are.
    """

    what: str
    percent: float
    ratio: float
    low: float | None
    high: float | None
    judgement: Judgement
    doubts: tuple[str, ...] = ()
    valid: bool = True


@dataclass(frozen=True)
class _Measured:
    """One measurement of a document, with what speaks against it."""

    percentiles: tuple[Percentile, ...]
    context: Context
    problems: tuple[str, ...] = ()
    valid: bool = True


def compare_documents(before: Document, after: Document) -> list[Verdict]:
    """Compare every measurement that both documents have.

    The interval of the ratio is that of the worst cases of both intervals, which is wider than
    95 %: a difference that it shows is there.

    Raises:
        UserError: They have no measurement in common, or too few requests in all of them.
    """
    old, new = dict(_measurements(before)), dict(_measurements(after))
    common = [key for key in old if key in new]
    if not common:
        raise UserError(
            "the two reports have no latency of the same measurement in common",
            "Make both with one command, such as `bilateral bench served` or `bench suite`.",
        )
    verdicts = []
    for key in common:
        doubts = _doubts(old[key], new[key])
        for one, other in zip(old[key].percentiles, new[key].percentiles, strict=True):
            if one.percent in COMPARED and one.value_ms and other.value_ms:
                verdict = _judge(key[0], one, other, doubts)
                valid = old[key].valid and new[key].valid
                verdicts.append(replace(verdict, valid=valid))
    if not verdicts:
        raise UserError(
            "the two reports have too few requests for any percentile", "Measure for longer."
        )
    return verdicts


def _judge(
    what: str, before: Percentile, after: Percentile, doubts: tuple[str, ...] = ()
) -> Verdict:
    assert before.value_ms
    assert after.value_ms
    low = after.low_ms / before.high_ms if after.low_ms and before.high_ms else None
    high = after.high_ms / before.low_ms if after.high_ms and before.low_ms else None
    judgement: Judgement = "indistinguishable"
    if low is not None and low > 1 + TOLERANCE:
        judgement = "slower"
    elif high is not None and high < 1 - TOLERANCE:
        judgement = "faster"
    ratio = after.value_ms / before.value_ms
    return Verdict(what, before.percent, ratio, low, high, judgement, doubts)


def _doubts(before: _Measured, after: _Measured) -> tuple[str, ...]:
    differences = before.context.machine.differences(after.context.machine)
    machines = [f"different machines: {'; '.join(differences)}"] if differences else []
    problems = [
        f"{side}: {problem}"
        for side, measured in (("before", before), ("after", after))
        for problem in measured.problems
    ]
    return (*machines, *problems)


def _measurements(document: Document) -> Iterator[tuple[tuple[str, Shapes], _Measured]]:
    """What can be compared, by what it is and the shapes of its inputs."""
    for item in document.items:
        if isinstance(item, Report):
            yield _of_report(item)
        elif isinstance(item, Sweep):
            for point in item.points:
                if point.report is not None:
                    (name, shapes), found = _of_report(point.report)
                    yield (f"{name}, {item.axis} {point.value:g}", shapes), found
        elif isinstance(item, ScenarioResult) and item.report and item.scenario != "Server":
            (name, shapes), found = _of_report(item.report)
            yield (f"{item.scenario}, {name}", shapes), found
        elif isinstance(item, Comparison):
            for row in item.rows:
                if row.median is not None:
                    failed = ("fails parity",) if row.parity_passed is False else ()
                    name = f"{item.title}, batch {item.batch}: {row.name}"
                    found = _Measured((row.median,), item.context, failed, valid=not failed)
                    yield (name, ()), found


def _of_report(report: Report) -> tuple[tuple[str, Shapes], _Measured]:
    # The server's address may differ between runs.
    name = f"{report.subject.partition(' at ')[0]}, batch {report.batch}, {report.load}"
    shapes = tuple(sorted(report.shapes.items()))
    percentiles = report.response.percentiles
    return (name, shapes), _Measured(percentiles, report.context, report.doubts, report.valid)
