"""The residual stream as one running sum, and the tokens that are read, on graphs of known make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from bilateral_export.lowering.attention_pattern import PreconditionError
from bilateral_export.lowering.gate import measure_norms, measure_outputs
from bilateral_export.lowering.graph_edit import copied
from bilateral_export.lowering.lower import PASSES, lowered_proto
from bilateral_export.lowering.push_down_gather import push_down_gather
from bilateral_export.lowering.residual_stream import read_residual_stream, rewrite_residual_stream

TOKENS, DIM = 5, 8
Coefficients = tuple[float, float, float, float, float]


def residual_model(layers: list[Coefficients], seed: int = 0) -> onnx.ModelProto:
    """x' = a x + b f(LN(c x + d x0)) + e x0 for each layer, a norm, and its token 2."""
    generator = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {
        "gain": generator.uniform(0.5, 1.5, DIM).astype(np.float32),
        "shift": generator.standard_normal(DIM).astype(np.float32),
        "two": np.array(2),
    }

    def node(operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{operator}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))  # type: ignore[arg-type]
        return name

    def constant(value: object) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.asarray(value, dtype=np.float32)
        return name

    def norm(x: str) -> str:
        return node("LayerNormalization", x, "gain", "shift", axis=-1, epsilon=1e-5)

    x0 = x = node("Relu", "tokens")
    for a, b, c, d, e in layers:
        inner = node("Add", node("Mul", constant(c), x), node("Mul", constant(d), x0))
        weight = constant(generator.standard_normal((DIM, DIM)) / DIM**0.5)
        bias = constant(generator.standard_normal(DIM))
        branch = node("Add", node("MatMul", norm(inner), weight), bias)
        sum_ = node("Add", node("Mul", constant(a), x), node("Mul", constant(b), branch))
        x = node("Add", sum_, node("Mul", constant(e), x0))
    out = node("Gather", norm(x), "two", axis=1)
    shape = ["batch", TOKENS, DIM]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outputs(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((3, TOKENS, DIM)).astype(np.float32)
    return np.asarray(session.run(None, {"tokens": x})[0])


def replace_pass(
    monkeypatch: pytest.MonkeyPatch, name: str, apply: Callable[[onnx.ModelProto], int]
) -> None:
    """Let a pass of ONNX Runtime's pipeline do something else, behind the same gate."""
    changed = [replace(p, apply=apply) if p.name == name else p for p in PASSES["onnxruntime-cpu"]]
    monkeypatch.setitem(PASSES, "onnxruntime-cpu", tuple(changed))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


factor = st.sampled_from([-1.5, -0.7, 0.4, 1.0, 2.0])
share = st.sampled_from([-0.2, 0.0, 0.3])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(factor, factor, factor, share, share), min_size=1, max_size=4))
def test_the_running_sum_computes_the_same(layers: list[Coefficients]) -> None:
    before = residual_model(layers)
    model = copied(before)
    try:
        rewrite_residual_stream(model)
    except PreconditionError:
        return  # a share of x0 cancelled
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(outputs(model), outputs(before), rtol=1e-3, atol=1e-4)
    assert operators(model)["Sub"] <= 2 * len(layers)
    assert all(found.passed for found in measure_norms(model, before))


def test_a_standard_residual_connection_needs_one_difference_a_branch() -> None:
    model = residual_model([(1.0, 1.0, 1.0, 0.0, 0.0)] * 3)
    rewrite_residual_stream(model)
    found = operators(model)
    assert found["Sub"] == 3
    assert found["Mul"] == 0
    # What is left are the biases of the linear layers.
    assert found["Add"] == 3


def test_a_wrong_weight_is_caught_by_the_gate() -> None:
    before = residual_model([(1.0, 0.5, 1.0, 0.1, 0.0)] * 2)
    stream = read_residual_stream(before)
    model = copied(before)
    rewrite_residual_stream(model)
    name = f"{next(iter(stream.branches))}.weight"
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.001, name))
    assert not all(found.passed for found in measure_norms(model, before))


@pytest.mark.parametrize(
    "layer",
    [
        (0.0, 1.0, -1.0, 2.0, 0.0),  # Osher: a = 0 forgets the branches
        (1.0, 1.0, -1.0, 1.0, 0.0),  # twicing: the first norm reads x0 - x0
    ],
)
def test_other_streams_are_left_alone(layer: Coefficients) -> None:
    with pytest.raises(PreconditionError, match="nothing of the stream's beginning"):
        read_residual_stream(residual_model([layer] * 3))


def test_only_the_read_token_is_computed_and_the_output_stays() -> None:
    before = residual_model([(1.0, 0.5, 1.0, 0.1, 0.2)] * 2)
    model = copied(before)
    # Everything here works token by token, so that x0 is the only full tensor.
    assert push_down_gather(model) > 10
    onnx.checker.check_model(model, full_check=True)
    assert all(found.passed for found in measure_outputs(model, before))
    gathers = [n.input[0] for n in model.graph.node if n.op_type == "Gather"]
    assert any(name == "tokens" or name.startswith("Relu") for name in gathers)


def test_a_model_whose_tokens_are_all_read_is_left_alone() -> None:
    model = residual_model([(1.0, 1.0, 1.0, 0.0, 0.0)])
    gather = model.graph.node[-1]
    output = model.graph.output.add(name=gather.input[0])
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    with pytest.raises(PreconditionError, match="all tokens are read"):
        push_down_gather(model)


def test_a_classifier_gets_both_and_a_change_of_its_outputs_undoes_them(
    digits_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, done = lowered_proto(digits_onnx, "onnxruntime-cpu")
    assert done.record("residual_stream").applied
    assert done.record("push_down_gather").applied > 10

    def broken(model: onnx.ModelProto) -> int:
        head = next(n for n in model.graph.node if n.op_type == "Gemm")
        tensor = next(t for t in model.graph.initializer if t.name == head.input[1])
        value = numpy_helper.to_array(tensor) * np.float32(1.001)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return 5

    replace_pass(monkeypatch, "push_down_gather", broken)
    _, done = lowered_proto(digits_onnx, "onnxruntime-cpu")
    record = done.record("push_down_gather")
    assert record.applied == 0
    assert record.refused.endswith("its rounding fails the gate")
