"""INT8 and FP8 come through Q/DQ nodes; the manifest says what the products compute in."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.quantize import quantize_onnx, read_calibration
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx

pytest.importorskip("tensorrt_rtx")


def quantised_product(path: Path, element_type: int) -> Path:
    """y = dequantise(quantise(x)) times dequantise(quantised weight), x [b, 64]."""
    random = np.random.default_rng(0)
    scale = numpy_helper.from_array(np.float32(0.02), "scale")
    zero = helper.make_tensor("zero", element_type, [], [0])
    weight = random.normal(size=(64, 64)).astype(np.float32) / 8
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_d"]),
        helper.make_node("QuantizeLinear", ["weight", "scale", "zero"], ["w_q"]),
        helper.make_node("DequantizeLinear", ["w_q", "scale", "zero"], ["w_d"]),
        helper.make_node("MatMul", ["x_d", "w_d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [scale, zero, numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("element_type", "precision"),
    [(TensorProto.INT8, "int8"), (TensorProto.FLOAT8E4M3FN, "fp8")],
)
def test_a_product_of_dequantised_operands_counts_as_quantised(
    tmp_path: Path, element_type: int, precision: str
) -> None:
    model = quantised_product(tmp_path / "q.onnx", element_type)
    options = BuildOptions(targets=(89,))
    manifest = build_plan(model, tmp_path / "q.plan", options, library=load_library("tensorrt_rtx"))
    assert manifest.precision == precision
    assert manifest.types == {precision: 1}


class TestModelOptimizer:
    def test_its_absence_is_explained(
        self, digits_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", None)
        with pytest.raises(UserError, match="nvidia-modelopt"):
            quantize_onnx(digits_onnx, tmp_path / "q.onnx", {})
        assert list(tmp_path.iterdir()) == []

    def test_calibration_files_are_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "inputs.npz"
        np.savez(path, image=np.zeros((4, 1, 8, 8), np.float32))
        assert read_calibration(path)["image"].shape == (4, 1, 8, 8)
        whole = path.read_bytes()
        np.save(tmp_path / "one.npy", np.zeros(4))
        for content in (b"no archive", whole[:-20], (tmp_path / "one.npy").read_bytes()):
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"numpy\.savez"):
                read_calibration(path)

    @pytest.mark.parametrize("mode", ["int8", "fp8"])
    def test_the_digits_model_keeps_its_attention_and_builds(
        self, digits, heldout, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        model, target = tmp_path / "digits.onnx", tmp_path / "quantised.onnx"
        export_onnx(digits, model, precision="fp16")
        with pytest.raises(UserError, match="takes image"):
            quantize_onnx(model, target, {"pixels": heldout[0][:4]}, mode)
        assert quantize_onnx(model, target, {"image": heldout[0][:32]}, mode) > 0
        assert list(Path.cwd().iterdir()) == []  # it leaves files where the process works
        options = BuildOptions(targets=(89,), attention="function")
        library = load_library("tensorrt_rtx")
        manifest = build_plan(target, tmp_path / "q.plan", options, library=library)
        assert manifest.types[mode] == 12
        assert manifest.attention.fused == 4
        assert manifest.metadata is not None
