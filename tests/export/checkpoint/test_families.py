"""Checkpoints of every family: known names, what contradicts the weights, what is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.datasets.ade20k import ade20k_preprocessing
from bilateral_export.checkpoint.formats.native import read_native, save_checkpoint
from bilateral_export.checkpoint.known import card_of
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.registry import MODELS, build, named
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifierConfig
from bilateral_export.preprocessing import (
    BytesPreprocessing,
    ListOpsPreprocessing,
    PixelsPreprocessing,
    Preprocessing,
    TextPreprocessing,
)

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"
LISTOPS = CHECKPOINTS / "listops_bilateral.safetensors"
PYDOC = CHECKPOINTS / "pydoc_bilateral.safetensors"


@pytest.mark.parametrize("path", [LISTOPS, PYDOC])
def test_the_committed_checkpoints_are_models_of_the_zoo(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.card.model == named(path.stem)
    assert checkpoint.card.preprocessing is not None


def test_together_they_stay_small() -> None:
    assert LISTOPS.stat().st_size + PYDOC.stat().st_size < 3_000_000


def test_an_unknown_name_lists_known_ones_like_it() -> None:
    with pytest.raises(UserError, match=r"'lra_texts'.*lra_text, .*`bilateral models` lists all"):
        named("lra_texts")
    with pytest.raises(UserError, match=r"unknown model name '\?+'.*`bilateral models` lists all"):
        named("?" * 1000)


@pytest.mark.parametrize(
    ("path", "model", "shown"),
    [
        (LISTOPS, "lra_listops", r"length 128 \(not 2048\)"),
        (LISTOPS, "segmenter_tiny", "'sequence-classifier'.*not 'segmenter'"),
        (PYDOC, "wikitext103_small", r"vocabulary 2520 \(not 267735\)"),
    ],
)
def test_a_name_that_contradicts_the_checkpoint_is_refused_with_both(
    path: Path, model: str, shown: str
) -> None:
    with pytest.raises(UserError, match=shown):
        load_checkpoint(path, model=model)


@pytest.mark.parametrize(
    ("name", "change", "shown"),
    [
        ("listops_bilateral", {"vocabulary": 20}, "vocabulary 20, the weights have 16 ("),
        ("listops_bilateral", {"depth": 5}, "depth 5, the weights have 3 ("),
        ("listops_bilateral", {"heads": 2}, "heads 2, the weights have 4 ("),
        ("listops_bilateral", {"length": 64}, "length (positions) 64, the weights have 128 ("),
        ("listops_bilateral", {"num_classes": 7}, "num_classes 7, the weights have 10 ("),
        ("pydoc_bilateral", {"hidden": 64}, "hidden 64, the weights have 256 ("),
        ("digits_bilateral", {"dim": 96}, "dim 96, the weights have 48; hidden 384, the weights"),
        ("digits_bilateral", {"distilled": True}, "; distilled yes, the weights have no ("),
        (
            "digits_plain_grc",
            {"depth": 5, "residual": ResidualConfig()},
            "learned residual no, the",
        ),
        (
            "digits_bilateral",
            {"attention": AttentionConfig(spatial_kernel="dot")},
            "spatial_kernel dot, the weights have gaussian (",
        ),
        ("segmenter", {"decoder_depth": 3}, "decoder_depth 3, the weights have 1 ("),
        ("segmenter", {"depth": 1}, "depth 1, the weights have 2 ("),
        ("segmenter", {"num_classes": 9}, "num_classes 9, the weights have 5 ("),
    ],
)
def test_weights_that_contradict_their_configuration_are_refused_with_both(
    tmp_path: Path, name: str, change: dict[str, Any], shown: str
) -> None:
    if name == "segmenter":
        config = SegmenterConfig(
            image_size=32, dim=12, depth=2, heads=3, decoder_depth=1, num_classes=5
        )
        state, card = build(config).state_dict(), CheckpointCard(name=name, model=config)
    else:
        content = read_native(CHECKPOINTS / f"{name}.safetensors")
        assert content.card is not None
        state, card = content.state, content.card
    changed = type(card.model).model_validate(card.model.model_dump() | change)
    wrong = CheckpointCard(name=name, model=changed)
    save_checkpoint(tmp_path / "wrong.safetensors", state, wrong)
    with pytest.raises(UserError) as refusal:
        load_checkpoint(tmp_path / "wrong.safetensors")
    assert shown in refusal.value.problem
    assert len(refusal.value.problem) < 500  # not a line for each tensor of each block


def test_a_tokenizer_that_contradicts_the_model_is_refused_with_both(tmp_path: Path) -> None:
    content = read_native(PYDOC)
    assert content.card is not None
    state, card = content.state, content.card
    assert isinstance(card.preprocessing, TextPreprocessing)
    for change, shown in (
        ({"context": 64}, "2520 words and context 64, the model 2520 and 128"),
        ({"vocabulary_sha256": "0" * 64}, "vocabulary's SHA-256 is"),
    ):
        text = card.preprocessing.model_copy(update=change)
        wrong = card.model_copy(update={"preprocessing": text})
        save_checkpoint(tmp_path / "wrong.safetensors", state, wrong)
        with pytest.raises(UserError, match=shown):
            load_checkpoint(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("lra_", "segm"))])
def test_a_named_model_without_a_card_gets_its_benchmarks_labels_and_preprocessing(
    name: str, tmp_path: Path
) -> None:
    config = MODELS[name]
    card = card_of(name, config)
    assert isinstance(config, SequenceClassifierConfig | SegmenterConfig)
    assert len(card.labels) == config.num_classes
    assert card.preprocessing is not None
    assert CheckpointCard.model_validate_json(card.model_dump_json()) == card


def test_a_training_checkpoint_of_another_family_loads_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = named("lra_pathfinder")
    torch.save({"model": build(config).state_dict()}, tmp_path / "last.pth")
    checkpoint = load_checkpoint(tmp_path / "last.pth", model="lra_pathfinder")
    assert checkpoint.card.labels == ("not connected", "connected")


@pytest.mark.parametrize(
    ("name", "preprocessing", "problem"),
    [
        ("lra_image", PixelsPreprocessing(height=16, width=64), "the model takes"),
        ("lra_text", BytesPreprocessing(length=5000), "up to 5000 tokens, the model takes 4096"),
        ("lra_listops", ListOpsPreprocessing(length=3000), "the model takes 2048"),
        (
            "segmenter_tiny",
            ade20k_preprocessing(256),
            "windows of 256 pixels, the model takes 512",
        ),
    ],
)
def test_preprocessing_that_contradicts_the_model_is_refused(
    name: str, preprocessing: Preprocessing, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        CheckpointCard(name=name, model=named(name), preprocessing=preprocessing)
