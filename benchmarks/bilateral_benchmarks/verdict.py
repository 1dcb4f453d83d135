"""Two reports of the same measurement: faster, slower, or indistinguishable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bilateral_benchmarks.comparison import Comparison
from bilateral_benchmarks.document import Document
from bilateral_benchmarks.percentiles import Percentile
from bilateral_benchmarks.report import Report
from bilateral_benchmarks.scenarios import ScenarioResult
from bilateral_benchmarks.sweep import Sweep
from bilateral_export.errors import UserError

Judgement = Literal["faster", "slower", "indistinguishable"]
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
    """

    what: str
    percent: float
    ratio: float
    low: float | None
    high: float | None
    judgement: Judgement


def compare_documents(before: Document, after: Document) -> list[Verdict]:
    """Compare every measurement that both documents have.

    The interval of the ratio is that of the worst cases of both intervals, which is wider than
    95 %: a difference that it shows is there.

    Raises:
        UserError: They have no measurement in common.
    """
    old, new = dict(_measurements(before)), dict(_measurements(after))
    common = [what for what in old if what in new]
    if not common:
        raise UserError("the two reports have no measurement in common", "Run the same command.")
    verdicts = []
    for what in common:
        for one, other in zip(old[what], new[what], strict=True):
            if one.percent in COMPARED and one.value_ms and other.value_ms:
                verdicts.append(_judge(what, one, other))
    return verdicts


def _judge(what: str, before: Percentile, after: Percentile) -> Verdict:
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
    return Verdict(what, before.percent, ratio, low, high, judgement)


def _measurements(document: Document) -> Iterable[tuple[str, tuple[Percentile, ...]]]:
    for item in document.items:
        if isinstance(item, Report):
            yield _name(item), item.response.percentiles
        elif isinstance(item, Sweep):
            for point in item.points:
                if point.report is not None:
                    name = f"{_name(point.report)}, {item.axis} {point.value:g}"
                    yield name, point.report.response.percentiles
        elif isinstance(item, ScenarioResult) and item.report and item.scenario != "Server":
            yield f"{item.scenario}, {_name(item.report)}", item.report.response.percentiles
        elif isinstance(item, Comparison):
            for row in item.rows:
                if row.median is not None:
                    yield f"{item.title}: {row.name}", (row.median,)


def _name(report: Report) -> str:
    # The server's address may differ between runs.
    return f"{report.subject.partition(' at ')[0]}, batch {report.batch}, {report.load}"
