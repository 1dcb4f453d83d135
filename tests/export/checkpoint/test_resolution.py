"""Changing the resolution: learned positions are interpolated, coordinates rescaled."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.datasets.imagenet import deit_preprocessing, imagenet_labels
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build, named
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

DIGITS = Path(__file__).parents[3] / "export" / "checkpoints" / "digits_bilateral.safetensors"


def checkpoint(config: ImageClassifierConfig, name: str = "model_32") -> Checkpoint:
    torch.manual_seed(0)
    state = build(config).state_dict()
    card = CheckpointCard(name=name, model=config, preprocessing=deit_preprocessing(32))
    return Checkpoint(path=Path("unused"), sha256="0" * 64, card=card, state=state)


def small(spatial_kernel: str, distilled: bool = False) -> ImageClassifierConfig:
    return ImageClassifierConfig(
        image_size=32,
        patch_size=4,
        dim=12,
        depth=1,
        heads=3,
        num_classes=4,
        distilled=distilled,
        attention=AttentionConfig(range_kernel="gaussian", spatial_kernel=spatial_kernel),
    )


def deits_interpolation(rows: Tensor, prefix: int, old: int, new: int) -> Tensor:
    """DeiT's fine-tuning step, written independently for one `[tokens, dim]` table."""
    image = rows[prefix:].T.reshape(1, -1, old, old)
    image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([rows[:prefix], image[0].flatten(1).T])


@pytest.mark.parametrize("distilled", [False, True])
def test_position_embeddings_are_interpolated_as_deit_does(distilled: bool) -> None:
    before = checkpoint(small("none", distilled))
    after = at_resolution(before, 48)
    prefix = 2 if distilled else 1
    expected = deits_interpolation(before.state["pos_embed"][0], prefix, 8, 12)
    torch.testing.assert_close(after.state["pos_embed"][0], expected)


def test_learned_features_of_each_head_are_interpolated_the_same_way() -> None:
    before = checkpoint(small("dot"))
    after = at_resolution(before, 48)
    for name in ("query_features", "key_features"):
        key = f"blocks.0.attn.{name}"
        for head in range(3):
            expected = deits_interpolation(before.state[key][head], 1, 8, 12)
            torch.testing.assert_close(after.state[key][head], expected)
    after.build_model()(torch.zeros(1, 3, 48, 48))


def test_coordinates_cover_the_same_extent_in_the_trained_grids_patches() -> None:
    fine = at_resolution(checkpoint(small("gaussian")), 64).build_model().positions[1:]
    # Patch i of 16 has its centre at (i + 1/2) / 16 of the image, which is 8 trained patches wide.
    centres = (torch.arange(16) + 0.5) / 16 * 8 - 4
    torch.testing.assert_close(fine.view(16, 16, 2)[:, 3, 0], centres)
    torch.testing.assert_close(fine.view(16, 16, 2)[5, :, 1], centres)


def test_moved_coordinates_are_where_the_interpolation_samples() -> None:
    """Positions and embeddings agree: sampling the old coordinates as an image gives the new."""
    before = checkpoint(small("gaussian"))
    old = build(before.card.model).positions[1:].T.reshape(1, 2, 8, 8)
    sampled = F.interpolate(old, size=(16, 16), mode="bilinear", align_corners=False)
    new = at_resolution(before, 64).build_model().positions[1:].T.reshape(1, 2, 16, 16)
    inner = (..., slice(1, -1), slice(1, -1))  # the outermost centres lie outside the old ones
    torch.testing.assert_close(new[inner], sampled[inner])


def test_twice_there_is_as_once_for_the_coordinates() -> None:
    before = checkpoint(small("gaussian"))
    twice = at_resolution(at_resolution(before, 48), 64)
    assert twice.card.model == at_resolution(before, 64).card.model


def test_name_and_preprocessing_follow() -> None:
    card = at_resolution(checkpoint(small("none")), 64).card
    assert card.name == "model_64"
    assert card.preprocessing == deit_preprocessing(64)


def test_deits_resize_is_the_same_in_both_directions() -> None:
    name = "deit_tiny_patch16_384"
    card = CheckpointCard(name=name, model=named(name), preprocessing=deit_preprocessing(384))
    state = build(card.model).state_dict()
    before = Checkpoint(path=Path("unused"), sha256="0" * 64, card=card, state=state)
    after = at_resolution(before, 224)
    assert (after.card.name, after.card.preprocessing) == (
        name[:-3] + "224",
        deit_preprocessing(224),
    )


def test_another_preprocessing_keeps_its_proportions() -> None:
    digits = load_checkpoint(DIGITS)
    preprocessing = at_resolution(digits, 16).card.preprocessing
    assert preprocessing is not None
    assert (preprocessing.height, preprocessing.resize, preprocessing.channels) == (16, 16, 1)


def test_the_same_size_changes_nothing() -> None:
    before = checkpoint(small("dot"))
    assert at_resolution(before, 32) is before


@pytest.mark.parametrize("image_size", [30, 0, -32])
def test_a_size_the_patches_do_not_tile_is_refused(image_size: int) -> None:
    with pytest.raises(UserError, match="not a multiple of the patch size 4"):
        at_resolution(checkpoint(small("none")), image_size)


def test_half_precision_weights_stay_in_half_precision() -> None:
    before = checkpoint(small("dot"))
    halves = {name: tensor.half() for name, tensor in before.state.items()}
    after = at_resolution(dataclasses.replace(before, state=halves), 48)
    assert {tensor.dtype for tensor in after.state.values()} == {torch.float16}


def test_a_distilled_bilateral_deit_goes_from_its_training_dict_at_224_to_onnx_at_384(
    tmp_path: Path,
) -> None:
    name = "deit_bilateral_tiny_distilled_patch16_224"
    torch.manual_seed(0)
    state = build(named(name)).state_dict()
    saved = {"model": {f"module.{key}": value for key, value in state.items()}}
    torch.save(saved | {"args": Namespace(model=name)}, tmp_path / "checkpoint.pth")

    moved = at_resolution(load_checkpoint(tmp_path / "checkpoint.pth"), 384)
    exported = export_onnx(moved, tmp_path / "deit.onnx")

    assert (moved.card.name, moved.card.labels[0]) == (name[:-3] + "384", imagenet_labels()[0])
    assert moved.card.preprocessing == deit_preprocessing(384)
    assert exported.attention_nodes == 12
    image = torch.randn(1, 3, 384, 384)
    with torch.inference_mode():
        expected = moved.build_model()(image).numpy()
    with OnnxRuntimeRunner(exported.path) as runner:
        logits = runner.run({"image": image.numpy()})["logits"]
    np.testing.assert_allclose(logits, expected, atol=2e-5)
