"""Inputs: reproducible, at every corner, from the family's own hook or from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.parity.inputs.extremes import extreme_samples, token_extremes
from bilateral_export.parity.inputs.samples import random_samples, real_samples
from bilateral_export.runners.torch_eager import TorchRunner


def test_random_samples_are_reproducible_and_fit(digits: Checkpoint) -> None:
    model = digits.build_model()
    first, second = random_samples(model, seed=1), random_samples(model, seed=1)
    assert [sample.items for sample in first[:4]] == [1, 2, 8, 9]
    assert sum(sample.items for sample in first) >= 32
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.arrays["image"], other.arrays["image"])
    assert len({sample.origin for sample in first}) == len(first)


def test_every_batch_size_meets_every_length(checkpoints: dict[str, Checkpoint]) -> None:
    model = checkpoints["language"].build_model()
    samples = random_samples(model, (1, 3), {"length": (2, 5), "past": (0, 4)}, items=1)
    shapes = {
        (*sample.arrays["tokens"].shape, sample.arrays["past_keys"].shape[3]) for sample in samples
    }
    assert shapes == {(b, n, p) for b in (1, 3) for n in (2, 5) for p in (0, 4)}


def test_extreme_items_sit_between_ordinary_ones(checkpoints: dict[str, Checkpoint]) -> None:
    image = checkpoints["digits"].build_model()
    for sample in extreme_samples(image):
        assert np.isfinite(sample.arrays["image"][[0, 2]]).all()
    assert token_extremes(image) == []
    words = checkpoints["sequence"].build_model()
    assert extreme_samples(words) == []
    for sample in token_extremes(words):
        assert len(np.unique(sample.arrays["tokens"][1])) == 1
        assert (sample.arrays["tokens"][1] != 0).all()


def test_real_samples_come_from_a_file_or_are_refused(digits: Checkpoint, tmp_path: Path) -> None:
    specs = TorchRunner(digits).inputs
    np.savez(tmp_path / "good.npz", image=np.zeros((4, 1, 8, 8), np.float32))
    np.savez(tmp_path / "other.npz", picture=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    assert [s.items for s in real_samples(specs, tmp_path / "good.npz")] == [1, 2, 1]
    with pytest.raises(UserError, match="has no array image"):
        real_samples(specs, tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"is not an \.npz file"):
        real_samples(specs, tmp_path / "text.npz")


def test_every_real_item_is_compared_and_unusable_ones_are_refused(
    digits: Checkpoint, tmp_path: Path
) -> None:
    specs, path = TorchRunner(digits).inputs, tmp_path / "images.npz"
    np.savez(path, image=np.zeros((25, 1, 8, 8), np.float32))
    assert [s.items for s in real_samples(specs, path, (1, 8))] == [1, 8, 8, 8]
    for image, complaint in (
        (np.zeros((0, 1, 8, 8), np.float32), "no items"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), "NaN or infinity"),
    ):
        np.savez(path, image=image)
        with pytest.raises(UserError, match=complaint):
            real_samples(specs, path)
    np.save(tmp_path / "lone.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"is not an \.npz file"):
        real_samples(specs, tmp_path / "lone.npy")
