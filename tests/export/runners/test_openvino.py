from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.runners.base import Runner
from bilateral_export.runners.openvino_runner import OpenVinoRunner
from bilateral_export.runners.torch_eager import TorchRunner

pytest.importorskip("openvino")
IMAGES = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(digits: Checkpoint) -> np.ndarray:
    with TorchRunner(digits, torch.float64) as runner:
        return runner.run({"image": IMAGES})["logits"]


def _error(got: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(got - reference) / np.linalg.norm(reference))


def test_openvino_alone_does_not_read_the_canonical_file(digits_onnx: Path) -> None:
    import openvino

    with pytest.raises(RuntimeError, match=r"ai\.bilateral\.BilateralAttention"):
        openvino.Core().compile_model(str(digits_onnx), "CPU")


def test_reads_the_canonical_file_and_computes_in_float32(
    digits_onnx: Path, reference: np.ndarray
) -> None:
    with OpenVinoRunner(digits_onnx, threads=1) as runner:
        assert isinstance(runner, Runner)
        assert str(runner.inputs[0]) == "image float32[batch, 1, 8, 8]"
        assert str(runner.outputs[0]) == "logits float32[batch, 10]"
        for batch in (1, 6):
            got = runner.run({"image": IMAGES[:batch]})["logits"]
            assert got.dtype == np.float32
            assert _error(got, reference[:batch]) < 1e-5


def test_bf16_is_used_only_when_it_is_asked_for(digits_onnx: Path, reference: np.ndarray) -> None:
    with OpenVinoRunner(digits_onnx, threads=1, compute="bf16") as runner:
        error = _error(runner.run({"image": IMAGES})["logits"], reference)
    assert error < 0.1
    # A CPU without bf16 instructions may compute in f32 all the same.
    assert runner.name == "openvino bf16"


def test_threads_do_not_share_buffers(digits_onnx: Path) -> None:
    with OpenVinoRunner(digits_onnx, threads=1) as runner, ThreadPoolExecutor(4) as pool:
        alone = [runner.run({"image": image[None]})["logits"] for image in IMAGES]
        together = pool.map(
            lambda number: runner.run({"image": IMAGES[number % 6, None]})["logits"], range(48)
        )
        for number, got in enumerate(together):
            np.testing.assert_array_equal(got, alone[number % 6])


def test_results_outlive_the_next_run(digits_onnx: Path) -> None:
    with OpenVinoRunner(digits_onnx, threads=1) as runner:
        first = runner.run({"image": IMAGES[:1]})["logits"]
        kept = first.copy()
        runner.run({"image": IMAGES[1:2]})
        np.testing.assert_array_equal(first, kept)


def test_a_transposed_view_is_read_as_what_it_shows(digits_onnx: Path) -> None:
    view = IMAGES.transpose(0, 1, 3, 2)
    with OpenVinoRunner(digits_onnx, threads=1) as runner:
        np.testing.assert_array_equal(
            runner.run({"image": view})["logits"], runner.run({"image": view.copy()})["logits"]
        )


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not an ONNX model"):
        OpenVinoRunner(path).__enter__()
    with pytest.raises(UserError, match="does not exist"):
        OpenVinoRunner(tmp_path / "absent.onnx")
