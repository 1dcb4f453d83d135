"""Comparison of two documents: each latency faster, slower or indistinguishable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.result import Latency
from bilateral_benchmarks.statistics.percentiles import Percentile
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


def compare_documents(before: Document, after: Document) -> list[Verdict]:
    """Return a verdict for every measurement that both documents have.

    The interval of the ratio is that of the worst cases of both intervals, which is wider than
    95 %: a difference that it shows is there.

    Raises:
        UserError: They have no measurement in common, or too few requests in all of them.
    """
    old, new = _latencies(before), _latencies(after)
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
                verdict = _judge(old[key].name, one, other, doubts)
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


def _doubts(before: Latency, after: Latency) -> tuple[str, ...]:
    differences = before.context.machine.differences(after.context.machine)
    machines = [f"different machines: {'; '.join(differences)}"] if differences else []
    problems = [
        f"{side}: {problem}"
        for side, measured in (("before", before), ("after", after))
        for problem in measured.problems
    ]
    return (*machines, *problems)


def _latencies(document: Document) -> dict[object, Latency]:
    """Return what can be compared, by what it is and the shapes of its inputs."""
    found = (latency for item in document.items for latency in item.latencies())
    return {(latency.name, latency.shapes): latency for latency in found}
