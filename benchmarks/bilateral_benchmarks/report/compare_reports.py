"""Comparison of two documents: each number faster, slower or indistinguishable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bilateral_benchmarks.report.document import Document
from bilateral_benchmarks.report.result import KEPT, Quantity
from bilateral_export.errors import UserError

Judgement = Literal["faster", "slower", "smaller", "larger", "better", "worse", "indistinguishable"]
WORSE: tuple[Judgement, ...] = ("slower", "larger", "worse")
# Differences below this are not worth a red build, however certain they are.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Verdict:
    """One number of one measurement in both documents.

    Attributes:
        what: The measurement.
        measure: Which number of it.
        ratio: Its new value over the old.
        low: Least that the two intervals allow; None: not limited.
        high: Most.
        judgement: Faster or slower; of memory smaller or larger, of shares better or worse. Only if
            the whole interval of the ratio is more than TOLERANCE away from 1.
        doubts: Why the difference may not be the model's: other machines, invalid runs.
        valid: Whether both runs are.
    """

    what: str
    measure: str
    ratio: float
    low: float | None
    high: float | None
    judgement: Judgement
    doubts: tuple[str, ...] = ()
    valid: bool = True


def compare_documents(before: Document, after: Document) -> list[Verdict]:
    """Return a verdict for every number that both documents have.

    The interval of the ratio is that of the worst cases of both intervals, which is wider than
    95 %: a difference that it shows is there.

    Raises:
        UserError: They have no number of the same measurement in common.
    """
    old, new = _quantities(before), _quantities(after)
    common = [key for key in old if key in new]
    if not common:
        raise UserError(
            "the two reports have no number of the same measurement in common",
            "Make both with one command, such as `bilateral bench served` or `bench suite`, and"
            " measure long enough for a percentile.",
        )
    return [_judge(old[key], new[key]) for key in common]


def _judge(before: Quantity, after: Quantity) -> Verdict:
    low = after.low / before.high if after.low is not None and before.high else None
    high = after.high / before.low if after.high is not None and before.low else None
    grown, shrunk = _WORDS[_kind(before)]
    judgement: Judgement = "indistinguishable"
    if low is not None and low > 1 + TOLERANCE:
        judgement = grown
    elif high is not None and high < 1 - TOLERANCE:
        judgement = shrunk
    return Verdict(
        before.name,
        before.measure,
        after.value / before.value,
        low,
        high,
        judgement,
        _doubts(before, after),
        before.valid and after.valid,
    )


_Kind = Literal["time", "rate", "memory", "share"]
# What a number that has grown is called, and one that has shrunk.
_WORDS: dict[_Kind, tuple[Judgement, Judgement]] = {
    "time": ("slower", "faster"),
    "rate": ("faster", "slower"),
    "memory": ("larger", "smaller"),
    "share": ("better", "worse"),
}


def _kind(quantity: Quantity) -> _Kind:
    if quantity.measure == KEPT:
        return "share"
    if quantity.more_is_better:
        return "rate"
    return "memory" if quantity.measure.endswith("MiB") else "time"


def _doubts(before: Quantity, after: Quantity) -> tuple[str, ...]:
    differences = before.context.machine.differences(after.context.machine)
    machines = [f"different machines: {'; '.join(differences)}"] if differences else []
    problems = [
        f"{side}: {problem}"
        for side, measured in (("before", before), ("after", after))
        for problem in measured.problems
    ]
    return (*machines, *problems)


def _quantities(document: Document) -> dict[object, Quantity]:
    """Return what can be compared, by what it is and the shapes of its inputs."""
    found = (quantity for item in document.items for quantity in item.quantities())
    return {(one.name, one.measure, one.shapes): one for one in found}
