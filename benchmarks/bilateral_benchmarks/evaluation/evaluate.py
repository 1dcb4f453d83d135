"""Models on the same labelled files, from raw bytes, and every two compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bilateral_benchmarks.evaluation import measures, paired
from bilateral_benchmarks.evaluation.dataset import Item, read_dataset
from bilateral_benchmarks.evaluation.journal import Journal
from bilateral_benchmarks.evaluation.labels import match_labels, read_classes
from bilateral_benchmarks.evaluation.measures import Answer, Content, Measure
from bilateral_benchmarks.evaluation.result import Evaluation, Pair, Score, Unread
from bilateral_benchmarks.evaluation.subjects import Description, Subject, open_subject
from bilateral_export.checkpoint.formats.text import listed
from bilateral_export.errors import UserError
from bilateral_serving.client.inputs.segmentation import Classes
from bilateral_serving.client.requests import DEFAULT_URL

# Beside a segmenter's images and masks: the name of each number in the masks, one a line.
MASK_LABELS = "labels.txt"

OnProgress = Callable[[int, int], None]
"""Called with how many items are done, and how many there are."""


def evaluate(
    subjects: Sequence[str | Subject],
    data: Path,
    *,
    url: str = DEFAULT_URL,
    max_drop: float | None = None,
    batch: int = 32,
    record: Path | None = None,
    classes: Path | None = None,
    ignore_zero: bool = False,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Score models on the same files and compare every two.

    Each model reads the files' bytes with its own preprocessing and names its answer with its own
    labels. What cannot be read counts as wrong.

    Args:
        subjects: Checkpoints, ONNX files and names of served models, or subjects not yet open.
        data: See `read_dataset`.
        url: "host:port" of the server of served models.
        max_drop: How much worse than the first each other model may be: in the main metric (0.01
            is one percentage point), of perplexity in relation to it.
        batch: Items that are read, and asked of a model in this process, at once.
        record: JSONL file of each answer, from which a further call goes on; None: none is kept.
        classes: File of lines `name<TAB>label` for names in the data that are not labels.
        ignore_zero: Whether 0 in masks is ignored and classes begin at 1, as in ADE20K.
        model: As in `load_checkpoint`, for checkpoints.
        on_progress: See `OnProgress`.

    Raises:
        UserError: A model cannot be read or reached, they do different things, the data does not
            fit them, or there is no second model for `max_drop`.
    """
    if max_drop is not None and (len(subjects) < 2 or not 0 <= max_drop < float("inf")):
        raise UserError(
            f"a largest drop of {max_drop} for {len(subjects)} model(s)",
            "Give at least two models, and a number that is not negative.",
        )
    if batch < 1:
        raise UserError(f"batch {batch}", "It must be at least 1.")
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(record))
        opened = [
            stack.enter_context(open_subject(each, url, model) if isinstance(each, str) else each)
            for each in subjects
        ]
        models = [subject.description for subject in opened]
        _check_same(models)
        items = read_dataset(data, models[0].task, models[0].takes_images)
        _check_sources(items, models[0])
        measure = _measure(items, models, read_classes(classes) if classes else {})
        masks = _mask_classes(data, models)
        answers: list[list[Answer]] = [[] for _ in opened]
        for start in range(0, len(items), batch):
            piece = [(item, item.read()) for item in items[start : start + batch]]
            for subject, kept, own in zip(opened, answers, masks, strict=True):
                contents = [
                    Content(item, sources, _mask(item, ignore_zero, own, subject))
                    for item, sources in piece
                ]
                kept += _answered(subject, contents, measure, journal)
            if on_progress:
                on_progress(start + len(piece), len(items))
    scores = [
        _score(model, measure, items, kept) for model, kept in zip(models, answers, strict=True)
    ]
    pairs = [
        _pair(a, b, models, answers, measure, max_drop)
        for a, b in itertools.combinations(range(len(models)), 2)
    ]
    return Evaluation(
        data=str(data),
        items=len(items),
        metric=measure.metric,
        scores=tuple(scores),
        pairs=tuple(pairs),
        max_drop=max_drop,
    )


def _check_same(models: Sequence[Description]) -> None:
    for other in models[1:]:
        for what in ("task", "takes_images", "documents"):
            mine, theirs = getattr(models[0], what), getattr(other, what)
            if mine != theirs:
                kinds = f"{models[0].preprocessing.kind} and {other.preprocessing.kind}"
                raise UserError(
                    f"'{models[0].name}' and '{other.name}' take different inputs: {kinds}",
                    "Evaluate them one at a time.",
                )


def _check_sources(items: Sequence[Item], model: Description) -> None:
    for item in items:
        if len(item.sources) != model.documents:
            raise UserError(
                f"item {item.id} has {len(item.sources)} inputs; '{model.name}' takes"
                f" {model.documents}",
                "For a model that compares two documents give a table with both on each line.",
            )


def _measure(items: Sequence[Item], models: Sequence[Description], said: dict[str, str]) -> Measure:
    if models[0].task == "classification":
        return measures.Classification(items, models, said)
    if models[0].task == "language":
        return measures.Language(items)
    return measures.Segmentation(items, max(map(_classes, models)))


def _classes(model: Description) -> int:
    return len(getattr(model.preprocessing, "palette", ())) or len(model.labels)


def _mask_classes(data: Path, models: Sequence[Description]) -> list[list[int]]:
    """The class of each number in the masks for each model, where the data names them."""
    file = data / MASK_LABELS
    if models[0].task != "segmentation" or not file.is_file():
        return [[] for _ in models]
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    known = [match_labels(names, model.labels, model.name) for model in models]
    return [[classes[name] for name in names] for classes in known]


def _mask(
    item: Item, ignore_zero: bool, classes: Sequence[int], subject: Subject
) -> Classes | None:
    if item.mask is None:
        return None
    return measures.read_mask(item.mask, ignore_zero, classes, _classes(subject.description))


def _answered(
    subject: Subject, contents: Sequence[Content], measure: Measure, journal: Journal
) -> list[Answer]:
    """Return a model's answers about some items, asked only where they are not known."""
    model = subject.description
    keys = [(model.identity, content.item.id, content.sha256) for content in contents]
    new = [number for number, key in enumerate(keys) if journal.find(key) is None]
    if new:
        found = measure.answers(subject, [contents[number] for number in new])
        for number, answer in zip(new, found, strict=True):
            journal.add(keys[number], model.name, answer)
    return [journal.find(key) or {} for key in keys]


def _score(
    model: Description, measure: Measure, items: Sequence[Item], answers: Sequence[Answer]
) -> Score:
    unread = [
        Unread(item=item.id, reason=answer["error"])
        for item, answer in zip(items, answers, strict=True)
        if "error" in answer
    ]
    if len(unread) == len(items):
        raise UserError(f"'{model.name}' could answer no item: {unread[0].reason}")
    return Score(
        name=model.name,
        kind=model.kind,
        metrics=measure.metrics(model, answers),
        interval=measure.interval(model, answers),
        unread=tuple(unread),
        findings=tuple(measure.findings(model, answers)),
        preprocessing=model.preprocessing,
    )


def _pair(
    a: int,
    b: int,
    models: Sequence[Description],
    answers: Sequence[Sequence[Answer]],
    measure: Measure,
    max_drop: float | None,
) -> Pair:
    two, both = (models[a], models[b]), (answers[a], answers[b])
    drop, interval = measure.drop(two, both)
    only = measure.only_right(two, both)
    changed = [
        measure.change(number, two, answer)
        for number, answer in enumerate(zip(*both, strict=True))
        if measure.differ(two, answer)
    ]
    return Pair(
        first=two[0].name,
        second=two[1].name,
        changed=tuple(changed),
        first_only=only[0] if only else None,
        second_only=only[1] if only else None,
        drop=drop,
        interval=interval,
        p_value=paired.mcnemar_p(*only) if only else None,
        differences=tuple(_differences(*two)),
        passed=max_drop is None or a > 0 or drop <= max_drop,
    )


def _differences(first: Description, second: Description) -> list[str]:
    """What two models do differently to a file, or call their classes."""
    mine, theirs = (model.preprocessing.model_dump() for model in (first, second))
    found = [
        f"{name}: {mine.get(name)} and {theirs.get(name)}"
        for name in dict.fromkeys([*mine, *theirs])
        if name not in ("vocabulary", "palette") and mine.get(name) != theirs.get(name)
    ]
    if first.labels != second.labels:
        same = set(first.labels) == set(second.labels)
        moved = [
            f"'{a}' and '{b}'" for a, b in zip(first.labels, second.labels, strict=False) if a != b
        ]
        what = "labels in another order" if same else "other labels"
        found.append(f"{what}: {listed(moved)}")
    return found
