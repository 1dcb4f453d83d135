"""A DeiT of a known name brings DeiT's evaluation preprocessing and ImageNet's class names."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.datasets.imagenet import deit_preprocessing, imagenet_labels
from bilateral_export.checkpoint.labels import with_labels
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.registry import MODELS, build, named
from bilateral_export.preprocessing import ImagePreprocessing


def training_dict(path: Path, name: str) -> Path:
    """What DeiT's main.py saves."""
    torch.manual_seed(0)
    state = build(named(name)).state_dict()
    torch.save({"model": state, "epoch": 299, "args": Namespace(model=name)}, path)
    return path


@pytest.mark.parametrize(("image_size", "resize"), [(224, 256), (384, 438)])
def test_the_shorter_side_is_resized_as_deit_does(image_size: int, resize: int) -> None:
    assert deit_preprocessing(image_size).resize == resize


def test_both_of_deits_formulas_give_the_same_resize_at_every_size() -> None:
    for size in range(16, 1025, 16):
        assert deit_preprocessing(size).resize == int(size / 0.875) == int((256 / 224) * size)


def test_class_names_are_in_imagenets_order() -> None:
    labels = imagenet_labels()
    assert len(labels) == len(set(labels)) == 1000
    anchors = {0: "tench", 1: "goldfish", 207: "golden retriever", 388: "giant panda"}
    anchors |= {281: "tabby", 340: "zebra", 817: "sports car", 963: "pizza", 999: "toilet tissue"}
    assert {index: labels[index] for index in anchors} == anchors


def test_synsets_of_the_same_name_are_told_apart() -> None:
    assert imagenet_labels()[134] == "crane (n02012849)"  # the bird
    assert imagenet_labels()[517] == "crane (n03126707)"  # the machine


def test_a_training_dict_that_says_its_model_gets_preprocessing_and_names(tmp_path: Path) -> None:
    path = training_dict(tmp_path / "checkpoint.pth", "deit_bilateral_tiny_patch16_384")
    card = load_checkpoint(path).card
    assert card.preprocessing == deit_preprocessing(384)
    assert card.labels == imagenet_labels()


def test_the_same_holds_when_the_user_says_the_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build(named("deit_tiny_patch16_224")).state_dict(), path)
    card = load_checkpoint(path, model="deit_tiny_patch16_224").card
    assert card.preprocessing == deit_preprocessing(224)
    assert card.labels == imagenet_labels()


def test_of_an_unknown_configuration_nothing_is_guessed(tmp_path: Path) -> None:
    config = named("digits_plain")
    (tmp_path / "mine.json").write_text(config.model_dump_json())
    torch.save(build(config).state_dict(), tmp_path / "weights.pth")
    card = load_checkpoint(tmp_path / "weights.pth", model=str(tmp_path / "mine.json")).card
    assert (card.preprocessing, card.labels) == (None, ())


def test_a_whole_card_brings_preprocessing_and_labels_for_a_model_of_ones_own(
    tmp_path: Path,
) -> None:
    config = named("digits_plain")
    how = ImagePreprocessing(height=8, width=8, channels=1, resize=9, mean=(0.4,), std=(0.2,))
    labels = tuple("abcdefghij")
    card = CheckpointCard(name="mine", model=config, labels=labels, preprocessing=how)
    (tmp_path / "mine.json").write_text(card.model_dump_json())
    torch.save(build(config).state_dict(), tmp_path / "weights.pth")
    assert load_checkpoint(tmp_path / "weights.pth", model=str(tmp_path / "mine.json")).card == card


DIGITS = Path(__file__).parents[4] / "export" / "checkpoints" / "digits_plain.safetensors"


def test_names_from_a_file_replace_those_of_the_checkpoint(tmp_path: Path) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    assert with_labels(load_checkpoint(DIGITS), tmp_path / "names.txt").card.labels == tuple(names)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"zero\none\n", "has 2 lines; the model has 10 classes"),
        (b"a\nb\nc\n\ne\nf\ng\nh\ni\nj\n", "10 lines, 1 of them blank"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"a\nb\nc\x1b[31m\nd\ne\nf\ng\nh\ni\nj\n", r"control characters: c.x1b.31m"),
    ],
)
def test_a_file_that_does_not_name_every_class_is_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        with_labels(load_checkpoint(DIGITS), tmp_path / "names.txt")


# Published: 5.7 M, 22.1 M, 86.6 M (DeiT, table 1); 5.9 M, 22.4 M, 87.3 M distilled; 86.9 M at 384.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
        ("deit_small_distilled_patch16_224", 22_436_432),
        ("deit_base_distilled_patch16_224", 87_338_192),
        ("deit_base_patch16_384", 86_859_496),
    ],
)
def test_plain_twins_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(named(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_bilateral_twin_adds_one_bandwidth_per_head_and_five_coefficients_per_residual() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(parameter.numel() for parameter in build(named(name)).parameters())
            for name in ("deit_small_patch16_224", "deit_bilateral_small_patch16_224")
        }
    plain, bilateral = counts.values()
    assert bilateral - plain == 12 * (6 + 2 * 5)


def test_every_deit_has_its_configuration_as_json() -> None:
    deits = [name for name in MODELS if name.startswith("deit_")]
    assert len(deits) == 2 * 3 * 2 * 2
    for name in deits:
        assert json.loads(named(name).model_dump_json())["image_size"] == int(name[-3:])


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path: Path, newline: bytes) -> None:
    names = tuple("abcdefghij")
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + newline.join(n.encode() for n in names))
    assert with_labels(load_checkpoint(DIGITS), tmp_path / "names.txt").card.labels == names
