"""Runners share one protocol and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.runners.base import Runner
from bilateral_export.runners.lowered import LoweredRunner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_eager import TorchRunner


@pytest.fixture(params=["torch", "onnxruntime", "lowered"])
def runner(request: pytest.FixtureRequest, digits: Checkpoint, digits_onnx: Path) -> Runner:
    made: dict[str, Runner] = {
        "torch": TorchRunner(digits),
        "onnxruntime": OnnxRuntimeRunner(digits_onnx, threads=1),
        "lowered": LoweredRunner(digits_onnx, threads=1),
    }
    return made[request.param]


def test_inputs_and_outputs_are_described(runner: Runner) -> None:
    with runner:
        assert [str(spec) for spec in runner.inputs] == ["image float32[batch, 1, 8, 8]"]
        assert [str(spec) for spec in runner.outputs] == ["logits float32[batch, 10]"]


def test_arrays_in_arrays_out(runner: Runner) -> None:
    image = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    before = image.copy()
    with runner:
        logits = runner.run({"image": image})["logits"]
        again = runner.run({"image": image[::-1]})["logits"]  # not contiguous
    assert logits.shape == (3, 10)
    np.testing.assert_allclose(again[::-1], logits, atol=1e-5)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"picture": np.zeros((1, 1, 8, 8), np.float32)}, "no input picture"),
        ({}, "was not given image"),
        ({"image": np.zeros((1, 1, 8, 8))}, "is float64"),
        ({"image": np.zeros((1, 1, 8, 9), np.float32)}, r"has shape \[1, 1, 8, 9\]"),
        ({"image": np.zeros((1, 8, 8), np.float32)}, r"has shape \[1, 8, 8\]"),
        ({"image": np.zeros((0, 1, 8, 8), np.float32)}, r"has shape \[0, 1, 8, 8\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named_with_what_was_expected(
    runner: Runner, arrays: dict[str, np.ndarray], message: str
) -> None:
    with runner, pytest.raises(UserError, match=message):
        runner.run(arrays)


def test_a_file_is_lowered_when_it_is_loaded_unless_it_is_wanted_as_it_is(
    digits_onnx: Path,
) -> None:
    with LoweredRunner(digits_onnx) as lowered, LoweredRunner(digits_onnx, lower=False) as plain:
        assert lowered.lowering is not None
        assert plain.lowering is None


def test_a_file_that_cannot_be_lowered_runs_as_it_is(
    digits_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("too large", "leave it")

    monkeypatch.setattr("bilateral_export.runners.lowered.lower", refuse)
    alone = tmp_path / "alone.onnx"  # nothing was kept beside it
    alone.write_bytes(digits_onnx.read_bytes())
    with LoweredRunner(alone) as runner:
        assert runner.refused.startswith("too large")
        assert runner.run({"image": np.zeros((1, 1, 8, 8), np.float32)})["logits"].shape == (1, 10)


def test_the_reference_is_float64_throughout(digits: Checkpoint) -> None:
    image = np.zeros((1, 1, 8, 8), np.float32)
    with TorchRunner(digits, torch.float64) as reference:
        assert reference.run({"image": image})["logits"].dtype == np.float64


def test_files_onnx_runtime_cannot_run_are_refused(
    digits: Checkpoint, digits_onnx: Path, tmp_path: Path
) -> None:
    text, cut = tmp_path / "text.onnx", tmp_path / "cut.onnx"
    text.write_text("this is no model")
    cut.write_bytes(digits_onnx.read_bytes()[:5000])
    for path in (text, cut):
        with pytest.raises(UserError, match="is not an ONNX model"), OnnxRuntimeRunner(path):
            pass
    bf16 = tmp_path / "bf16.onnx"
    export_onnx(digits, bf16, precision="bf16")
    with pytest.raises(UserError, match=r"cannot run.*no bfloat16"), OnnxRuntimeRunner(bf16):
        pass
    with pytest.raises(UserError, match="has no TPUExecutionProvider"):
        OnnxRuntimeRunner(digits_onnx, provider="TPUExecutionProvider").__enter__()


@pytest.mark.parametrize("flush", [True, False])
def test_subnormal_numbers_are_zero_in_a_session_and_nowhere_else(
    tmp_path: Path, flush: bool
) -> None:
    tensors = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", 4096])
        for name in ("small", "same")
    ]
    factor = numpy_helper.from_array(np.ones(1, np.float32), "one")
    product = helper.make_node("Mul", ["small", "one"], ["same"])
    graph = helper.make_graph([product], "product", tensors[:1], tensors[1:], [factor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "product.onnx")
    # Enough rows for every thread of the session, and the calling one.
    small = np.full((512, 4096), 1e-40, dtype=np.float32)
    with OnnxRuntimeRunner(tmp_path / "product.onnx", threads=2, flush_subnormals=flush) as runner:
        same = runner.run({"small": small})["same"]
    np.testing.assert_array_equal(same, np.zeros_like(small) if flush else small)
    assert (torch.from_numpy(small) * 1).equal(torch.from_numpy(small))
