"""Names in the data are the model's labels, never numbers by their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from bilateral_benchmarks.evaluation.labels import match_labels, other_order, read_classes
from bilateral_export.checkpoint.datasets.imagenet import imagenet_labels
from bilateral_export.errors import UserError

LABELS = ("tench, Tinca tinca", "Great White Shark", "crane", "house_finch, linnet")


def test_names_match_but_for_case_underscores_and_synonyms() -> None:
    names = ["Tinca tinca", "great_white_shark", "crane", "linnet"]
    assert match_labels(names, LABELS, "m") == dict(zip(names, range(4), strict=True))


def test_wordnet_identifiers_are_imagenets_classes_also_where_two_share_a_name() -> None:
    names = ["n01440764", "n02012849", "n03126707", "n15075141"]
    ours = match_labels(names, imagenet_labels(), "m")
    assert list(ours.values()) == [0, 134, 517, 999]
    plain = [label.partition(" (n")[0] for label in imagenet_labels()]
    assert match_labels(names, plain, "m") == ours


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["carp"], LABELS, "no class for 1 of the 1 names in the data: carp"),
        (["a"], ("A", "a ", "b"), "no class for 1"),
        (["0"], (), "has no labels"),
        (["n00000000"], LABELS, "n00000000"),
    ],
    ids=["unknown", "ambiguous", "no labels", "synset"],
)
def test_a_name_that_is_no_label_is_refused(
    names: list[str], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        match_labels(names, labels, "m")


def test_a_file_says_which_label_a_name_is(tmp_path: Path) -> None:
    file = tmp_path / "classes.tsv"
    file.write_text("a\tcrane\nb\tlinnet\n")
    assert match_labels(["a", "b"], LABELS, "m", read_classes(file)) == {"a": 2, "b": 3}
    file.write_text("a crane\n")
    with pytest.raises(UserError, match="has no tab"):
        read_classes(file)


def test_exchanged_labels_are_found_and_named() -> None:
    labels = tuple("abcdefgh")
    truth = [number % 8 for number in range(80)]
    swapped = [{0: 3, 3: 0}.get(number, number) for number in truth]
    found = other_order(truth, swapped, labels)
    assert found is not None
    assert "2 classes" in found
    assert "'a' as 'd', 'd' as 'a'" in found
    assert "100.0%" in found
    shifted = [number + 1 for number in truth[:56] if number < 7]
    found = other_order([number - 1 for number in shifted], shifted, labels)
    assert found is not None
    assert "7 classes" in found


def test_a_bad_model_is_not_taken_for_exchanged_labels() -> None:
    labels = tuple("abcdefgh")
    truth = [number % 8 for number in range(80)]
    one_class = [0] * 80
    assert other_order(truth, one_class, labels) is None
    assert other_order(truth, truth, labels) is None
    mixed_up = [1 if number == 0 else number for number in truth]
    assert other_order(truth, mixed_up, labels) is None
    # One item of each class, of which some are wrong.
    assert other_order(list(range(8)), [0, 1, 2, 3, 4, 6, 7, 0], labels) is None
