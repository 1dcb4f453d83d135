"""Graphs without their weights open, infer and answer as with them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.builders.exported import exported

from bilateral_export.lowering.gate import opened
from bilateral_export.lowering.weights_apart import without_weights

IMAGE = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return onnx.load(exported("digits_bilateral", tmp_path_factory))


def test_shapes_are_those_with_weights(model: onnx.ModelProto) -> None:
    light, weights = without_weights(model)
    assert weights
    assert light.ByteSize() < model.ByteSize() / 2
    inferred = [
        onnx.shape_inference.infer_shapes(one, data_prop=True).graph.value_info
        for one in (light, model)
    ]
    assert list(inferred[0]) == list(inferred[1])


def test_it_answers_the_same(model: onnx.ModelProto) -> None:
    whole = onnxruntime.InferenceSession(model.SerializeToString())
    (name,) = [entry.name for entry in whole.get_inputs()]
    with opened(model) as session:
        for got, wanted in zip(
            session.run(None, {name: IMAGE}), whole.run(None, {name: IMAGE}), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


def test_any_value_of_it_can_be_asked_for(model: onnx.ModelProto) -> None:
    """Weights that only later nodes read are not given: ONNX Runtime refuses them."""
    node = next(node for node in model.graph.node if node.op_type == "Gelu" or "gelu" in node.name)
    with opened(model, outputs=[node.output[0]]) as session:
        (name,) = [entry.name for entry in session.get_inputs()]
        (value,) = session.run(None, {name: IMAGE})
    assert value.shape[0] == 2
    _, weights = without_weights(model, [node.output[0]])
    assert set(weights) < set(without_weights(model)[1])


def test_what_branches_read_is_kept() -> None:
    big = onnx.numpy_helper.from_array(np.full((64, 64), 3.0, np.float32), "big")
    branch = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("Mul", ["x", read], [out])],
            out,
            [],
            [onnx.helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, [64, 64])],
        )
        for read, out in (("big", "then"), ("x", "else"))
    ]
    node = onnx.helper.make_node("If", ["go"], ["y"], then_branch=branch[0], else_branch=branch[1])
    unused = onnx.helper.make_node("Add", ["x", "x"], ["unused"])
    graph = onnx.helper.make_graph(
        [node, unused],
        "g",
        [
            onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64, 64]),
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64, 64])],
        [big],
    )
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    with opened(made) as session:
        x = np.ones((64, 64), np.float32)
        (y,) = session.run(None, {"go": np.array(True), "x": x})
    np.testing.assert_array_equal(y, 3 * x)
