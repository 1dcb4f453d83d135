"""Training arguments decide how images are prepared, and must not contradict what is asked for."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.datasets.imagenet import deit_preprocessing, imagenet_labels
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build, named
from bilateral_export.preprocessing import ImagePreprocessing

DEIT = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def deit() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(named(DEIT)).state_dict()


def _loaded(
    path: Path,
    state: dict[str, torch.Tensor],
    arguments: Any,
    model: str | None = None,
) -> Checkpoint:
    torch.save({"model": state, "args": arguments}, path)
    return load_checkpoint(path, model=model)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"resize": 256}),
        ({"input_size": 224, "eval_crop_ratio": 1.0}, {"resize": 224}),
        ({"input_size": 224, "eval_crop_ratio": 0.875}, {"resize": 256}),
        ({"eval_crop_ratio": np.float64(0.9)}, {"resize": 248}),
        ({"crop_pct": 0.9, "input_size": None, "img_size": None}, {"resize": 248}),
        ({"input_size": [3, 224, 224], "interpolation": ""}, {"resize": 256}),
        ({"interpolation": "bilinear"}, {"interpolation": "bilinear"}),
        ({"mean": [0.5, 0.5, 0.5], "std": None}, {"mean": (0.5, 0.5, 0.5)}),
        ({"std": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}),
    ],
)
@pytest.mark.parametrize("kind", [Namespace, dict])
def test_what_the_arguments_say_of_images_is_done(
    deit: dict[str, torch.Tensor],
    tmp_path: Path,
    said: dict[str, Any],
    expected: dict[str, Any],
    kind: Any,
) -> None:
    loaded = _loaded(tmp_path / "c.pth", deit, kind(model=DEIT, **said))
    assert loaded.card.preprocessing == deit_preprocessing(224).model_copy(update=expected)
    assert loaded.preprocessing_source.startswith("DeiT's evaluation, by the name deit_tiny")
    changed = loaded.card.preprocessing != deit_preprocessing(224)
    assert ("training arguments'" in loaded.preprocessing_source) >= changed


def test_the_resize_is_deits_at_every_size_and_share() -> None:
    from bilateral_export.checkpoint.arguments import TrainingArguments

    for size in (32, 160, 224, 384, 512):
        for crop in (0.875, 0.9, 0.95, 1.0):
            made = TrainingArguments(crop=crop).prepare(deit_preprocessing(size))
            assert (made.resize, made.height) == (int(size / crop), size)


def test_a_fine_tuned_model_takes_its_classes_and_size_from_the_arguments(tmp_path: Path) -> None:
    config = named(DEIT).model_copy(update={"num_classes": 7, "image_size": 160})
    state = build(config).state_dict()
    card = _loaded(
        tmp_path / "c.pth", state, Namespace(model=DEIT, nb_classes=7, input_size=160)
    ).card
    assert card.model == config
    assert card.labels == ()
    assert card.preprocessing == deit_preprocessing(160)
    (tmp_path / "mine.json").write_text(config.model_dump_json())
    asked = load_checkpoint(tmp_path / "c.pth", model=str(tmp_path / "mine.json"))
    assert asked.card == card


def test_deit_takes_small_images_as_they_are(tmp_path: Path) -> None:
    config = named(DEIT).model_copy(update={"num_classes": 10, "image_size": 32})
    state = build(config).state_dict()
    said = {"model": DEIT, "nb_classes": 10, "input_size": 32, "eval_crop_ratio": 0.875}
    how = _loaded(tmp_path / "c.pth", state, Namespace(**said)).card.preprocessing
    assert isinstance(how, ImagePreprocessing)
    assert (how.resize, how.height) == (32, 32)


def test_the_model_that_is_asked_for_must_be_the_arguments(
    deit: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "c.pth"
    assert _loaded(path, deit, Namespace(model=DEIT), model=DEIT).card.labels == imagenet_labels()
    for arguments, model, shown in (
        ({"model": DEIT}, "deit_small_patch16_224", r"dim 192 \(not 384\), heads 3 \(not 6\)"),
        ({"model": DEIT}, "lra_text", r"family 'image-classifier' \(not 'sequence-classifier'\)"),
        ({"model": DEIT, "nb_classes": 10}, DEIT, r"num_classes 10 \(not 1000\)"),
    ):
        with pytest.raises(UserError, match=rf"is a {DEIT} with {shown}, which contradicts"):
            _loaded(path, deit, Namespace(**arguments), model=model)
    with pytest.raises(UserError, match=r"contradict their model.*not a multiple of patch_size"):
        _loaded(path, deit, Namespace(model=DEIT, input_size=225))


def test_a_card_that_is_asked_for_says_everything_itself(
    deit: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    how = deit_preprocessing(224).model_copy(update={"resize": 300})
    card = CheckpointCard(name="mine", model=named(DEIT), preprocessing=how)
    (tmp_path / "card.json").write_text(card.model_dump_json())
    arguments = Namespace(model=DEIT, eval_crop_ratio=1.0)
    loaded = _loaded(tmp_path / "c.pth", deit, arguments, model=str(tmp_path / "card.json"))
    assert loaded.card == card
    assert loaded.preprocessing_source == f"the card {tmp_path / 'card.json'}"


def test_of_another_model_the_arguments_must_say_all(tmp_path: Path) -> None:
    config = ImageClassifierConfig(image_size=32, patch_size=8, dim=24, depth=1, num_classes=4)
    (tmp_path / "mine.json").write_text(config.model_dump_json())
    state = build(config).state_dict()
    said: dict[str, Any] = {"crop_pct": 0.5, "mean": [0.5] * 3, "std": [0.25] * 3}
    model = str(tmp_path / "mine.json")
    loaded = _loaded(tmp_path / "c.pth", state, Namespace(model="vit_mine", **said), model=model)
    assert (loaded.card.preprocessing, loaded.preprocessing_source) == (None, "")
    said["interpolation"] = "bilinear"
    loaded = _loaded(tmp_path / "c.pth", state, Namespace(model="vit_mine", **said), model=model)
    assert loaded.card.preprocessing == ImagePreprocessing(
        height=32,
        width=32,
        resize=64,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


@pytest.mark.parametrize(
    "said",
    [
        {"eval_crop_ratio": 0},
        {"eval_crop_ratio": 1.5},
        {"eval_crop_ratio": float("nan")},
        {"eval_crop_ratio": "\x1b" * 1000},
        {"crop_pct": True},
        {"input_size": "224"},
        {"input_size": 10**9},
        {"input_size": []},
        {"nb_classes": -1},
        {"interpolation": "lanczos"},
        {"crop_mode": "squash"},
        {"mean": [0.5, 0.5]},
        {"mean": np.array([0.5])},
        {"std": [0, 1, 1]},
        {"std": [float("inf")] * 3},
    ],
)
def test_arguments_that_cannot_be_followed_are_refused_by_name(
    deit: dict[str, torch.Tensor], tmp_path: Path, said: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=f"its training arguments have {next(iter(said))} ") as no:
        _loaded(tmp_path / "c.pth", deit, Namespace(model=DEIT, **said))
    assert str(no.value).isprintable()
    assert len(str(no.value)) - len(str(tmp_path)) < 400


def test_arguments_of_one_channel_do_not_fit_three(
    deit: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"contradict model deit_tiny.*3 channels, 1 means"):
        _loaded(tmp_path / "c.pth", deit, Namespace(model=DEIT, mean=[0.5]))


def test_json_of_the_exported_preprocessing_is_the_arguments(
    deit: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    loaded = _loaded(tmp_path / "c.pth", deit, Namespace(model=DEIT, eval_crop_ratio=1.0))
    assert loaded.card.preprocessing is not None
    assert json.loads(loaded.card.preprocessing.model_dump_json())["resize"] == 224
