"""Parity passes what rounds differently and fails what computes something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import Precision
from bilateral_export.parity.compare import Candidate, compare, relative_error
from bilateral_export.parity.samples import Sample, random_samples, real_samples
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_runner import TorchRunner
from bilateral_export.tensors import Array


@pytest.fixture(scope="module")
def samples(digits: Checkpoint, heldout: tuple[Array, Array]) -> list[Sample]:
    made = random_samples(TorchRunner(digits).inputs)
    return [*made, Sample("held out", {"image": heldout[0][:24]})]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_healthy_export_passes(
    digits: Checkpoint, samples: list[Sample], tmp_path: Path, precision: Precision
) -> None:
    exported = export_onnx(digits, tmp_path / "m.onnx", precision=precision)
    candidate = Candidate(OnnxRuntimeRunner(exported.path, threads=1), precision)
    report = compare(digits, [candidate], samples)
    assert report.passed
    (row,) = report.rows
    assert 0 < row.error <= row.budget == pytest.approx(4 * row.eager_error)
    assert row.agreement >= 0.98


class Faulty(TorchRunner):
    """A runner whose answers are spoiled."""

    fault = staticmethod(lambda logits: logits)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        answer = super().run(arrays)
        return {"logits": self.fault(answer["logits"].copy())}


def swap_classes(logits: Array) -> Array:
    logits[:, [3, 5]] = logits[:, [5, 3]]
    return logits


def one_nan(logits: Array) -> Array:
    logits[-1, 0] = np.nan
    return logits


FAULTS = {
    "one percent off": lambda logits: logits * np.float32(1.01),
    "classes swapped": swap_classes,
    "one NaN": one_nan,
    "rows rotated": lambda logits: np.roll(logits, 1, axis=0),
    "rounded to half precision": lambda logits: logits.astype(np.float16).astype(np.float32),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails(digits: Checkpoint, samples: list[Sample], fault: str) -> None:
    runner = Faulty(digits)
    runner.fault = FAULTS[fault]
    report = compare(digits, [Candidate(runner, "fp32")], samples)
    assert not report.passed


def test_half_precision_weights_fail_an_fp32_budget(
    digits: Checkpoint, samples: list[Sample]
) -> None:
    runner = TorchRunner(digits, torch.float16)
    assert not compare(digits, [Candidate(runner, "fp32")], samples).passed
    assert compare(digits, [Candidate(runner, "fp16")], samples).passed


def test_the_error_is_the_worst_item_relative_to_its_own_size() -> None:
    reference = np.array([[3.0, 4.0], [0.3, 0.4]])
    got = reference + np.array([[0.0, 0.05], [0.0, 0.05]])
    assert relative_error(got, reference) == pytest.approx(0.1)


def test_random_samples_are_reproducible_and_fit(digits: Checkpoint) -> None:
    specs = TorchRunner(digits).inputs
    first, second = random_samples(specs, seed=1), random_samples(specs, seed=1)
    assert [len(sample.arrays["image"]) for sample in first] == [1, 2, 7]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.arrays["image"], other.arrays["image"])


def test_real_samples_come_from_a_file_or_are_refused(digits: Checkpoint, tmp_path: Path) -> None:
    specs = TorchRunner(digits).inputs
    np.savez(tmp_path / "good.npz", image=np.zeros((4, 1, 8, 8), np.float32))
    np.savez(tmp_path / "other.npz", picture=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    assert [len(s.arrays["image"]) for s in real_samples(specs, tmp_path / "good.npz")] == [1, 2, 1]
    with pytest.raises(UserError, match="has no array image"):
        real_samples(specs, tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"is no \.npz file"):
        real_samples(specs, tmp_path / "text.npz")
