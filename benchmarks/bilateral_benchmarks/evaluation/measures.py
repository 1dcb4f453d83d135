"""The task of a model as three measures: what is kept of an answer, and what follows from all."""

from __future__ import annotations

import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bilateral_benchmarks.evaluation import labels as names
from bilateral_benchmarks.evaluation import paired
from bilateral_benchmarks.evaluation.dataset import IGNORED, Item
from bilateral_benchmarks.evaluation.result import Change, Interval, Metric
from bilateral_benchmarks.evaluation.subjects import Description, Subject
from bilateral_export.errors import UserError
from bilateral_export.intervals import difference_interval, wilson_interval
from bilateral_serving.client.inputs.segmentation import Classes

TOP = 5
# Of the mean log-likelihood of a word: below it two answers differ by rounding alone.
SAME_LIKELIHOOD = 1e-3

Answer = Mapping[str, Any]
"""What the journal keeps of one answer; {"error": why} of an item that could not be answered."""


Two = tuple[Description, Description]
Both = tuple[Sequence[Answer], Sequence[Answer]]


class Measure(ABC):
    """One kind of task on one data set.

    Attributes:
        metric: The main metric.
        higher_is_better: Of the main metric.
    """

    metric: Metric

    @abstractmethod
    def answers(self, subject: Subject, contents: Sequence[Content]) -> list[Answer]:
        """Return what is kept of a model's answers about some items."""

    @abstractmethod
    def metrics(self, model: Description, answers: Sequence[Answer]) -> dict[str, float]:
        """Return the metrics of all answers, the main one first."""

    @abstractmethod
    def interval(self, model: Description, answers: Sequence[Answer]) -> Interval | None:
        """Return the 95 % interval of the main metric."""

    @abstractmethod
    def drop(self, models: Two, both: Both) -> tuple[float, Interval | None]:
        """Return how much worse the second model is, and its 95 % interval."""

    @abstractmethod
    def change(self, number: int, models: Sequence[Description], both: Sequence[Answer]) -> Change:
        """Return an item's two answers as people read them."""

    @abstractmethod
    def differ(self, models: Sequence[Description], both: Sequence[Answer]) -> bool:
        """Return whether two models' answers about an item are different ones."""

    def only_right(
        self, models: Sequence[Description], both: Sequence[Sequence[Answer]]
    ) -> tuple[int, int] | None:
        """Return how many items only one of two models got right; None where none is right."""
        del models, both
        return None

    def findings(self, model: Description, answers: Sequence[Answer]) -> list[str]:
        """Return what suggests a mistake in the model's labels."""
        del model, answers
        return []


class Content:
    """An item that was read once for all models.

    Attributes:
        item: The item.
        sources: The bytes of its files.
        mask: Class of every pixel `[height, width]`, where it has one.
        sha256: Of both.
    """

    def __init__(self, item: Item, sources: Sequence[bytes], mask: Classes | None) -> None:
        self.item, self.sources, self.mask = item, sources, mask
        digest = hashlib.sha256()
        for source in (*self.sources, b"" if mask is None else mask.tobytes()):
            digest.update(hashlib.sha256(source).digest())
        self.sha256 = digest.hexdigest()


class Classification(Measure):
    """The best classes of each item.

    Args:
        items: The items.
        models: The models; each has its own order of classes.
        said: The label of each name in the data, from a file of the user's.

    Raises:
        UserError: A name in the data is none of a model's labels.
    """

    def __init__(
        self, items: Sequence[Item], models: Sequence[Description], said: Mapping[str, str]
    ) -> None:
        self.metric = "top1" if models[0].takes_images else "accuracy"
        self._items = items
        self._truth: dict[str, NDArray[np.int64]] = {}
        for model in models:
            known = names.match_labels(
                [item.label for item in items], model.labels, model.name, said
            )
            self._truth[model.identity] = np.array([known[item.label] for item in items])

    def answers(self, subject: Subject, contents: Sequence[Content]) -> list[Answer]:
        """Keep the five best classes, the lower number first of equal ones."""
        kept: list[Answer] = []
        for row in subject.logits([content.sources for content in contents]):
            if isinstance(row, UserError):
                kept.append({"error": str(row)})
            elif not np.isfinite(row).all():
                kept.append({"error": "the answer is not finite"})
            else:
                kept.append({"top": np.argsort(-row, kind="stable")[:TOP].tolist()})
        return kept

    def metrics(self, model: Description, answers: Sequence[Answer]) -> dict[str, float]:
        """Return the share of items whose class is the best one, and among the five best."""
        found: dict[str, float] = {self.metric: float(self._right(model, answers).mean())}
        if self.metric == "top1" and len(model.labels) > TOP:
            truth = self._truth[model.identity]
            pairs = zip(truth, answers, strict=True)
            found["top5"] = float(np.mean([int(t) in a.get("top", ()) for t, a in pairs]))
        return found

    def interval(self, model: Description, answers: Sequence[Answer]) -> Interval | None:
        """Return Wilson's interval."""
        return wilson_interval(int(self._right(model, answers).sum()), len(answers))

    def only_right(
        self, models: Sequence[Description], both: Sequence[Sequence[Answer]]
    ) -> tuple[int, int]:
        """Return McNemar's two counts."""
        first, second = map(self._right, models, both)
        return int((first & ~second).sum()), int((second & ~first).sum())

    def drop(self, models: Two, both: Both) -> tuple[float, Interval | None]:
        """Return the difference of the shares."""
        first_only, second_only = self.only_right(models, both)
        low, high = difference_interval(first_only, second_only, len(both[0]))
        return (first_only - second_only) / len(both[0]), (-high, -low)

    def differ(self, models: Sequence[Description], both: Sequence[Answer]) -> bool:
        """Return whether the names of the best classes differ."""
        return self._named(models[0], both[0]) != self._named(models[1], both[1])

    def change(self, number: int, models: Sequence[Description], both: Sequence[Answer]) -> Change:
        """Return the two names."""
        item = self._items[number]
        first, second = map(self._named, models, both)
        return Change(item=item.id, truth=item.label, first=first, second=second)

    def findings(self, model: Description, answers: Sequence[Answer]) -> list[str]:
        """Return a sentence where the labels are in another order."""
        best = [int(answer.get("top", [-1])[0]) for answer in answers]
        truth = self._truth[model.identity].tolist()
        found = names.other_order(truth, best, model.labels)
        return [found] if found else []

    def _right(self, model: Description, answers: Sequence[Answer]) -> NDArray[np.bool_]:
        best = np.array([answer.get("top", [-1])[0] for answer in answers])
        return np.asarray(best == self._truth[model.identity])

    def _named(self, model: Description, answer: Answer) -> str:
        if "error" in answer:
            return "no answer"
        number = answer["top"][0]
        return model.labels[number] if number < len(model.labels) else str(number)


class Segmentation(Measure):
    """Intersections and unions of each item's classes.

    Args:
        items: The items.
        classes: How many the models have.
    """

    metric = "miou"

    def __init__(self, items: Sequence[Item], classes: int) -> None:
        self._items, self._classes = items, classes

    def answers(self, subject: Subject, contents: Sequence[Content]) -> list[Answer]:
        """Keep the pixels of each class in mask and answer and in either, and the map's SHA-256."""
        return [self._answer(subject, content) for content in contents]

    def _answer(self, subject: Subject, content: Content) -> Answer:
        mask = content.mask
        assert mask is not None
        try:
            windows = subject.cut(content.sources[0])
        except UserError as error:
            return {"error": str(error)}
        if windows.original != mask.shape:
            raise UserError(
                f"item {content.item.id}: the image has {windows.original[0]} rows of"
                f" {windows.original[1]} pixels, its mask {mask.shape[0]} of {mask.shape[1]}",
                "Give a mask of the image's size, upright as its EXIF orientation says.",
            )
        found = subject.segment(windows)
        seen = mask != IGNORED
        true, got = mask[seen], found[seen]
        both = self._counts(true[true == got])
        either = self._counts(true) + self._counts(got) - both
        present = np.flatnonzero(either)
        return {
            "map": hashlib.sha256(found.tobytes()).hexdigest(),
            "classes": present.tolist(),
            "intersections": both[present].tolist(),
            "unions": either[present].tolist(),
            "pixels": int(seen.sum()),
        }

    def metrics(self, model: Description, answers: Sequence[Answer]) -> dict[str, float]:
        """Return mIoU over all pixels of all items, and the share of right pixels."""
        both, either = self._tables(answers)
        pixels = sum(answer.get("pixels", 0) for answer in answers)
        return {
            "miou": paired.mean_iou(both.sum(axis=0), either.sum(axis=0)),
            "pixel_accuracy": float(both.sum() / pixels) if pixels else math.nan,
        }

    def interval(self, model: Description, answers: Sequence[Answer]) -> Interval | None:
        """Return the bootstrap's interval."""
        if len(answers) < 2:
            return None
        both, either = self._tables(answers)
        return paired.bootstrap_interval(
            len(answers), lambda weights: paired.mean_iou(weights @ both, weights @ either)
        )

    def drop(self, models: Two, both: Both) -> tuple[float, Interval | None]:
        """Return the difference of mIoU."""
        (a, b), (c, d) = map(self._tables, both)

        def statistic(weights: NDArray[np.int64]) -> float:
            first, second = (
                paired.mean_iou(weights @ a, weights @ b),
                paired.mean_iou(weights @ c, weights @ d),
            )
            return first - second

        items = len(both[0])
        found = statistic(np.ones(items, np.int64))
        return found, paired.bootstrap_interval(items, statistic) if items > 1 else None

    def differ(self, models: Sequence[Description], both: Sequence[Answer]) -> bool:
        """Return whether any pixel differs."""
        return both[0].get("map") != both[1].get("map")

    def change(self, number: int, models: Sequence[Description], both: Sequence[Answer]) -> Change:
        """Return each answer's own mIoU."""
        first, second = (
            "no answer" if "error" in one else f"mIoU {self.metrics(model, [one])['miou']:.4f}"
            for model, one in zip(models, both, strict=True)
        )
        return Change(item=self._items[number].id, truth="", first=first, second=second)

    def _counts(self, classes: Classes) -> NDArray[np.int64]:
        return np.bincount(classes, minlength=self._classes)

    def _tables(self, answers: Sequence[Answer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        both, either = np.zeros((2, len(answers), self._classes), np.int64)
        for row, answer in enumerate(answers):
            if "error" not in answer:
                both[row, answer["classes"]] = answer["intersections"]
                either[row, answer["classes"]] = answer["unions"]
        return both, either


class Language(Measure):
    """The likelihood of each text.

    Args:
        items: The items.
    """

    metric = "perplexity"

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def answers(self, subject: Subject, contents: Sequence[Content]) -> list[Answer]:
        """Keep the log-likelihood of the text and the number of its words."""
        kept: list[Answer] = []
        for content in contents:
            try:
                text = content.sources[0].decode("utf-8-sig")
            except UnicodeDecodeError:
                kept.append({"error": "it is not UTF-8 text"})
                continue
            words = subject.likelihoods(text.replace("\r\n", "\n").replace("\r", "\n"))
            likelihood = math.fsum(words)
            if not words or not math.isfinite(likelihood):
                kept.append({"error": "it has no words" if not words else "it has no likelihood"})
            else:
                kept.append({"log_likelihood": likelihood, "words": len(words)})
        return kept

    def metrics(self, model: Description, answers: Sequence[Answer]) -> dict[str, float]:
        """Return the perplexity of a word, and how many words there are."""
        table = self._table(answers)
        return {"perplexity": _perplexity(table.sum(axis=0)), "words": float(table[:, 1].sum())}

    def interval(self, model: Description, answers: Sequence[Answer]) -> Interval | None:
        """Return the bootstrap's interval over texts."""
        table = self._table(answers)
        if len(answers) < 2:
            return None
        return paired.bootstrap_interval(len(answers), lambda weights: _perplexity(weights @ table))

    def drop(self, models: Two, both: Both) -> tuple[float, Interval | None]:
        """Return the relative rise of the perplexity."""
        first, second = map(self._table, both)

        def statistic(weights: NDArray[np.int64]) -> float:
            return _perplexity(weights @ second) / _perplexity(weights @ first) - 1

        items = len(both[0])
        found = statistic(np.ones(items, np.int64))
        return found, paired.bootstrap_interval(items, statistic) if items > 1 else None

    def differ(self, models: Sequence[Description], both: Sequence[Answer]) -> bool:
        """Return whether the mean log-likelihoods of a word differ by more than rounding."""
        first, second = map(self._mean, both)
        return first != second and not abs(first - second) <= SAME_LIKELIHOOD

    def change(self, number: int, models: Sequence[Description], both: Sequence[Answer]) -> Change:
        """Return the two perplexities."""
        first, second = (
            "no answer" if "error" in one else f"perplexity {math.exp(-self._mean(one)):.3f}"
            for one in both
        )
        return Change(item=self._items[number].id, truth="", first=first, second=second)

    @staticmethod
    def _mean(answer: Answer) -> float:
        return -math.inf if "error" in answer else answer["log_likelihood"] / answer["words"]

    @staticmethod
    def _table(answers: Sequence[Answer]) -> NDArray[np.float64]:
        rows = [(one.get("log_likelihood", 0.0), one.get("words", 0)) for one in answers]
        return np.array(rows, np.float64)


def _perplexity(total: NDArray[np.float64]) -> float:
    """Exp of the mean negative log-likelihood, of their sum and the number of words."""
    likelihood, words = total
    return math.exp(-likelihood / words) if words else math.nan


def read_mask(path: Path, ignore_zero: bool, classes: Sequence[int], count: int) -> Classes:
    """Return the class of every pixel `[height, width]` by the model's numbers, 255 ignored.

    Args:
        path: A PNG file of whole numbers, one channel or a palette.
        ignore_zero: Whether 0 is ignored and the classes begin at 1, as in ADE20K.
        classes: The model's number of each of the mask's; empty: they are the same.
        count: How many classes the model has.

    Raises:
        UserError: It is not such a file, or has a class that the model has not.
    """
    try:
        values = np.asarray(Image.open(io.BytesIO(path.read_bytes()))).astype(np.int64)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"mask {path} is not an image", "Give a PNG file.") from error
    if values.ndim != 2:
        raise UserError(
            f"mask {path} has {values.shape[-1]} channels", "Give one channel of class numbers."
        )
    if ignore_zero:
        values = np.where(values == 0, IGNORED, values - 1)
    seen = values != IGNORED
    known = len(classes) or count
    if (values[seen] >= known).any():
        raise UserError(
            f"mask {path} has class {values[seen].max()}, and there are {known}",
            "Pixels that are not to count are 255; classes that begin at 1 need --ignore-zero.",
        )
    if classes:
        table = np.full(IGNORED + 1, IGNORED)
        table[: len(classes)] = classes
        values = table[values]
    return values.astype(np.uint8)
