"""The rewrites that lead ONNX Runtime to its faster kernels: other operators, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tests.export.lowering.test_residual_stream import (
    DIM,
    Coefficients,
    factor,
    operators,
    outputs,
    replace_pass,
    residual_model,
    share,
)

from bilateral_export.lowering.attention_pattern import PreconditionError
from bilateral_export.lowering.gelu import unfuse_gelu
from bilateral_export.lowering.graph_edit import copied
from bilateral_export.lowering.head_layout import rewrite_head_layout
from bilateral_export.lowering.lower import PASSES, lowered_proto
from bilateral_export.lowering.residual_into_gemm import fold_residual_into_gemm
from bilateral_export.lowering.residual_stream import rewrite_residual_stream
from bilateral_export.lowering.token_major_layout import (
    held_tensors,
    rewrite_token_major_layout,
    to_matrix,
)

KERNELS = {one.name for one in PASSES["onnxruntime-cpu"]} - {one.name for one in PASSES["openvino"]}


def with_running_sum(layers: list[Coefficients]) -> onnx.ModelProto:
    model = residual_model(layers)
    rewrite_residual_stream(model)
    return model


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(factor, factor, factor, share, share), min_size=1, max_size=4))
def test_products_that_add_shares_compute_the_same(layers: list[Coefficients]) -> None:
    try:
        before = with_running_sum(layers)
    except PreconditionError:
        return  # a share of x0 cancelled
    model = copied(before)
    norms = fold_residual_into_gemm(model)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(outputs(model), outputs(before), rtol=1e-3, atol=1e-4)
    # One product and one difference fewer for every such norm.
    was, now = operators(before), operators(model)
    assert now["Mul"] == was["Mul"] - norms
    assert now["Sub"] == was["Sub"] - norms


def test_what_reads_the_running_sum_itself_still_finds_it() -> None:
    before = with_running_sum([(1.0, 0.5, 1.0, 0.3, 0.2)] * 3)
    second = [node for node in before.graph.node if node.name.endswith(".sum")][1]
    before.graph.node.append(helper.make_node("Identity", second.output, ["seen"]))
    seen = helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, None)
    before.graph.output.insert(0, seen)
    model = copied(before)
    # The first norm behind a branch reads the sum itself.
    assert fold_residual_into_gemm(model) == 2
    np.testing.assert_allclose(outputs(model), outputs(before), rtol=1e-5, atol=1e-5)


def test_a_standard_residual_connection_has_no_shares_to_add() -> None:
    before = with_running_sum([(1.0, 1.0, 1.0, 0.0, 0.0)] * 2)
    model = copied(before)
    assert fold_residual_into_gemm(model) == 0
    assert model == before


def logits(model: onnx.ModelProto, batch: int = 2) -> NDArray[np.float32]:
    image = np.random.default_rng(2).standard_normal((batch, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: NDArray[np.float32] = session.run(None, {"image": image})[0]
    return result


@pytest.fixture
def mask_form(digits_onnx: Path) -> onnx.ModelProto:
    """The digits model, its attentions in the mask form; the last one has a single query."""
    model, _ = lowered_proto(digits_onnx, "onnxruntime-cpu", form="mask", without=KERNELS)
    return model


def seen(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one more output, before the others: a tensor of its own."""
    made = copied(model)
    made.graph.node.append(helper.make_node("Identity", [name], ["seen"]))
    made.graph.output.insert(0, helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, None))
    return made


@pytest.mark.parametrize("batch", [1, 3])
def test_heads_are_read_without_being_copied(batch: int, digits_onnx: Path) -> None:
    before, _ = lowered_proto(
        digits_onnx, "onnxruntime-cpu", form="mask", without={"push_down_gather", *KERNELS}
    )
    model = copied(before)
    assert rewrite_head_layout(model) == 4
    found = operators(model)
    assert found["Split"] == 0
    assert found["FusedMatMul"] == 8
    np.testing.assert_allclose(logits(model, batch), logits(before, batch), rtol=1e-4, atol=1e-5)


def test_heads_that_something_else_reads_stay_where_they_are(digits_onnx: Path) -> None:
    model, _ = lowered_proto(
        digits_onnx, "onnxruntime-cpu", form="mask", without={"push_down_gather", *KERNELS}
    )
    keys = next(n for n in model.graph.node if n.name.endswith("BilateralAttention.key"))
    model = seen(model, keys.output[0])
    assert rewrite_head_layout(model) == 3


@pytest.fixture
def with_heads_in_place(mask_form: onnx.ModelProto) -> onnx.ModelProto:
    model = copied(mask_form)
    assert rewrite_head_layout(model) == 3
    fold_residual_into_gemm(model)
    return model


@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_stay_the_rows_of_one_matrix_between_attentions(
    batch: int, with_heads_in_place: onnx.ModelProto
) -> None:
    model = copied(with_heads_in_place)
    fewer = rewrite_token_major_layout(model)
    was, now = operators(with_heads_in_place), operators(model)
    assert fewer == was.total() - now.total() > 0
    # Not a product, sum or norm less: only what moves tokens.
    assert {name for name in was | now if was[name] != now[name]} <= {"Transpose", "Reshape"}
    # Once at the start and for every token that was picked for the last block.
    swaps = [n for n in model.graph.node if n.op_type == "Transpose" and n.attribute[0].ints]
    items_first = [node for node in swaps if list(node.attribute[0].ints) == [1, 0, 2]]
    picked = {node.input[0] for node in items_first[1:]}
    assert all(n.op_type == "Gather" for n in model.graph.node if n.output[0] in picked)
    np.testing.assert_allclose(
        logits(model, batch), logits(with_heads_in_place, batch), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("operator", ["LayerNormalization", "Gelu", "Sub", "Softmax", "Conv"])
def test_whatever_else_is_read_is_still_in_its_order(
    operator: str, with_heads_in_place: onnx.ModelProto
) -> None:
    # In the middle of the graph, where tokens are rows, or are not and never were.
    nodes = [node for node in with_heads_in_place.graph.node if node.op_type == operator]
    before = seen(with_heads_in_place, nodes[len(nodes) // 2].output[0])
    model = copied(before)
    assert rewrite_token_major_layout(model) > 0
    # `logits` returns the first output.
    np.testing.assert_allclose(logits(model, 3), logits(before, 3), rtol=1e-4, atol=1e-5)


def test_the_metadata_says_what_each_matrix_holds(with_heads_in_place: onnx.ModelProto) -> None:
    model = copied(with_heads_in_place)
    rewrite_token_major_layout(model)
    held = held_tensors(model)
    assert "blocks.1.attn/Reshape_4" in held.values()
    for matrix, tensor in held.items():
        np.testing.assert_allclose(
            logits(seen(model, matrix), 3),
            to_matrix(logits(seen(with_heads_in_place, tensor), 3)),
            rtol=1e-4,
            atol=1e-4,
        )


def test_a_matrix_that_something_else_reads_keeps_its_order(
    with_heads_in_place: onnx.ModelProto,
) -> None:
    product = next(
        n for n in with_heads_in_place.graph.node if n.op_type == "Gemm" and "shared" in n.name
    )
    before = seen(with_heads_in_place, product.input[0])
    model = copied(before)
    assert rewrite_token_major_layout(model) == 0
    assert model == before


def test_without_heads_in_place_there_is_nothing_to_gain(mask_form: onnx.ModelProto) -> None:
    model = copied(mask_form)
    assert rewrite_token_major_layout(model) == 0
    assert model == mask_form


def test_a_gelu_behind_a_bias_is_not_fused_and_gives_the_same_bits(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    weight, bias = (
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("weight", (DIM, DIM)), ("bias", (DIM,)))
    )
    nodes = [
        helper.make_node("MatMul", ["tokens", "weight"], ["product"]),
        helper.make_node("Add", ["bias", "product"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["out"]),
    ]
    shape = ["batch", 5, DIM]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, shape)],
        [weight, bias],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = copied(before)
    assert unfuse_gelu(model) == 1
    kept = {}
    for name, proto in (("before", before), ("after", model)):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / name)
        onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        kept[name] = operators(onnx.load(tmp_path / name))
    assert kept["before"]["BiasGelu"] == 1
    assert kept["after"]["Gelu"] == 1
    # The two kernels round differently; without optimisation both files run the same one.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = generator.standard_normal((2, 5, DIM)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        ).run(None, {"tokens": x})[0]
        for proto in (before, model)
    ]
    np.testing.assert_array_equal(*results)


def test_a_classifier_gets_them_all_and_a_change_of_its_outputs_undoes_them(
    digits_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, done = lowered_proto(digits_onnx, "onnxruntime-cpu")
    # The last block's attention has one query; its heads stay as they are.
    assert done.record("head_layout").applied == 3
    assert done.record("gelu").applied == 4
    for name in ("residual_into_gemm", "token_major_layout"):
        assert done.record(name).applied > 0
        assert done.record(name).error is not None

    def broken(model: onnx.ModelProto) -> int:
        head = next(n for n in model.graph.node if n.op_type == "Conv")
        tensor = next(t for t in model.graph.initializer if t.name == head.input[1])
        value = numpy_helper.to_array(tensor) * np.float32(1.001)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return 4

    replace_pass(monkeypatch, "head_layout", broken)
    proto, done = lowered_proto(digits_onnx, "onnxruntime-cpu")
    record = done.record("head_layout")
    assert record.refused.endswith("its rounding fails the gate")
    assert record.applied == 0
    assert operators(proto)["FusedMatMul"] == 0


def test_openvino_keeps_the_operators_it_knows(digits_onnx: Path) -> None:
    _, done = lowered_proto(digits_onnx, "openvino")
    assert not {record.name for record in done.passes} & KERNELS
    assert done.model_dump()["kernels"]["refused"] == "not wanted"
