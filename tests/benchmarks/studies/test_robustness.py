"""Robust accuracy: attacks keep their budget, and every runtime agrees with torch under them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bilateral_benchmarks.studies.robustness.attacks import attack
from bilateral_benchmarks.studies.robustness.curve import Dataset, load_dataset, robustness
from bilateral_benchmarks.studies.robustness.report import RobustnessReport
from bilateral_benchmarks.studies.robustness.study import measure_robustness
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"
NAMES = ("digits_bilateral", "digits_plain")
OTHERS = ("digits_bilateral_standard", "digits_plain_grc")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(CHECKPOINTS / "digits_heldout.npz").first(60)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors")


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
@pytest.mark.parametrize("budget", [4 / 255, 32 / 255])
def test_an_attack_stays_within_its_budget_and_among_images(
    checkpoint: Checkpoint, data: Dataset, kind: str, budget: float
) -> None:
    adversarial = attack(checkpoint, data.pixels, data.classes, kind, budget, steps=3)  # type: ignore[arg-type]
    assert adversarial.shape == data.pixels.shape
    assert adversarial.dtype == np.float32
    change = np.abs(adversarial - data.pixels)
    assert 0.5 * budget < change.max() <= budget + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_the_same_seed_gives_the_same_attack(checkpoint: Checkpoint, data: Dataset) -> None:
    few = data.first(8)
    first, again, other = (
        attack(checkpoint, few.pixels, few.classes, "pgd", 8 / 255, steps=2, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_a_larger_budget_costs_accuracy_and_pgd_at_least_as_much_as_fgsm(
    checkpoint: Checkpoint, data: Dataset
) -> None:
    curve = robustness(checkpoint, data, budgets=(4.0, 48.0))
    accuracy = {(point.attack, point.budget): point.accuracy["torch"] for point in curve.points}
    assert accuracy[None, 0.0] >= 0.95
    for kind in ("fgsm", "pgd"):
        assert accuracy[kind, 48.0] < accuracy[kind, 4.0] <= accuracy[None, 0.0]
    assert accuracy["pgd", 48.0] <= accuracy["fgsm", 48.0]


def test_the_four_models_are_all_pairs_of_attention_and_residual(data: Dataset) -> None:
    loaded = [load_checkpoint(CHECKPOINTS / f"{name}.safetensors") for name in NAMES + OTHERS]
    curves = [robustness(checkpoint, data.first(4), attacks=()) for checkpoint in loaded]
    kinds = {(curve.attention, curve.residual) for curve in curves}
    assert kinds == {(a, r) for a in ("bilateral", "plain") for r in ("GRC", "standard")}


@pytest.mark.slow
def test_one_command_attacks_models_on_three_runtimes_that_agree(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = [CHECKPOINTS / f"{name}.safetensors" for name in NAMES]
    data = CHECKPOINTS / "digits_heldout.npz"
    measure_robustness(files, data, tmp_path, images=60, budgets=(8, 32), grpc_port=port)

    report = RobustnessReport.model_validate(json.loads((tmp_path / "robustness.json").read_text()))
    assert [curve.name for curve in report.curves] == list(NAMES)
    for point in (point for curve in report.curves for point in curve.points):
        assert set(point.accuracy) == {"torch", "onnxruntime", "triton"}
        # Two runtimes may part only where torch's own two highest logits are a draw.
        assert point.margin_of_others < 1e-4
        if not any(point.other_decisions.values()):
            assert len(set(point.accuracy.values())) == 1
    assert Image.open(tmp_path / "robustness.png").size[0] > 500
    assert "## PGD" in (tmp_path / "robustness.md").read_text()


def test_a_file_without_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", pixels=np.zeros(3))
    with pytest.raises(UserError, match=r"not an \.npz file with the arrays images and labels"):
        load_dataset(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((5, 8, 8), np.uint8), np.zeros(4, int)),
        (np.zeros((5, 64), np.uint8), np.zeros(5, int)),
        (np.zeros((5, 8, 8), np.float32), np.zeros(5, int)),
        (np.zeros((5, 8, 8), np.uint8), np.zeros(5)),
        (np.zeros((0, 8, 8), np.uint8), np.zeros(0, int)),
    ],
    ids=["other length", "flat", "floating images", "floating labels", "none"],
)
def test_arrays_that_are_no_data_set_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray
) -> None:
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    with pytest.raises(UserError, match=r"Expected uint8\[n, height, width\]"):
        load_dataset(tmp_path / "data.npz")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = (CHECKPOINTS / "digits_heldout.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not an \.npz file"):
        load_dataset(tmp_path / "data.npz")


def test_what_cannot_be_attacked_is_refused(checkpoint: Checkpoint, data: Dataset) -> None:
    few = data.first(2)
    larger = Dataset(np.zeros((2, 1, 28, 28), np.float32), few.classes)
    with pytest.raises(UserError, match=r"takes images \[1, 8, 8\], the data has \[1, 28, 28\]"):
        robustness(checkpoint, larger)
    with pytest.raises(UserError, match="the data has classes 3 to 77"):
        robustness(checkpoint, Dataset(few.pixels, np.array([3, 77])))
    for budget in (0.0, -4.0, 256.0, float("nan")):
        with pytest.raises(UserError, match="budget"):
            robustness(checkpoint, few, budgets=(4.0, budget))
    words = load_checkpoint(CHECKPOINTS / "pydoc_bilateral.safetensors")
    with pytest.raises(UserError, match="does not say how images become its input"):
        robustness(words, few)
    with pytest.raises(UserError, match="at least one"):
        data.first(0)
