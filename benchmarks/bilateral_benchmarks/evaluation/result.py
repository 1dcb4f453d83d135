"""What an evaluation found, as JSON has it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.evaluation.subjects import Kind
from bilateral_export.preprocessing import Preprocessing

Metric = Literal["top1", "accuracy", "miou", "perplexity"]
Interval = tuple[float, float]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class Unread(_Document):
    """An item that a model's preprocessing or the model itself refused; it counts as wrong."""

    item: str
    reason: str


class Score(_Document):
    """One model's metrics.

    Attributes:
        name: As the user gave it.
        kind: Where it ran.
        metrics: By name, the main one first: top1 and top5 of images, accuracy of texts, miou and
            pixel_accuracy, perplexity and words.
        interval: 95 % interval of the main one: Wilson's for a proportion, else the bootstrap's
            over items; None of fewer than two items.
        unread: Items that it could not answer.
        findings: What suggests that labels or preprocessing are wrong, a sentence each.
        preprocessing: What was done to the files.
    """

    name: str
    kind: Kind
    metrics: dict[str, float]
    interval: Interval | None
    unread: tuple[Unread, ...]
    findings: tuple[str, ...]
    preprocessing: Preprocessing


class Change(_Document):
    """An item that two models answered differently; `truth` is "" where it has no one name."""

    item: str
    truth: str
    first: str
    second: str


class Pair(_Document):
    """Two models on the same items.

    Attributes:
        first, second: Their names.
        changed: The items that they answered differently.
        first_only, second_only: How many only one of them got right; None for a metric that is no
            count of right answers.
        drop: How much worse the second is: the difference of the main metric, of perplexity its
            relative rise.
        interval: 95 % interval of the drop; None of fewer than two items.
        p_value: McNemar's exact test of equal accuracy; None for other metrics.
        differences: What the two do differently to files, or call classes.
        passed: Whether the drop is at most what was allowed; of the first model's pairs only.
    """

    first: str
    second: str
    changed: tuple[Change, ...]
    first_only: int | None
    second_only: int | None
    drop: float
    interval: Interval | None
    p_value: float | None
    differences: tuple[str, ...]
    passed: bool


class Evaluation(_Document):
    """Every model's score on one data set, and every two compared.

    Attributes:
        data: The folder or table.
        items: How many items it has.
        metric: The main metric.
        scores: In the order the models were given.
        pairs: Every two, the earlier one first.
        max_drop: What was allowed; None: nothing was asked.
    """

    schema_version: Literal[1] = 1
    data: str
    items: int
    metric: Metric
    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]
    max_drop: float | None

    @property
    def passed(self) -> bool:
        """Whether no model is worse than the first by more than allowed."""
        return all(pair.passed for pair in self.pairs)
