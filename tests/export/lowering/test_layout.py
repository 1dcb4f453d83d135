"""Head and token layouts for ONNX Runtime: other operators, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tests.export.lowering.test_residual_stream import operators, replace_pass

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.graph.token_matrices import held_tensors, to_matrix
from bilateral_export.lowering.graph_edit import copied
from bilateral_export.lowering.head_layout import rewrite_head_layout
from bilateral_export.lowering.lower import PASSES, lowered_proto
from bilateral_export.lowering.token_major_layout import (
    rewrite_token_major_layout,
)

KERNELS = {one.name for one in PASSES["onnxruntime-cpu"]} - {one.name for one in PASSES["openvino"]}


def logits(model: onnx.ModelProto, batch: int = 2) -> NDArray[np.float32]:
    image = np.random.default_rng(2).standard_normal((batch, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: NDArray[np.float32] = session.run(None, {"image": image})[0]
    return result


@pytest.fixture(scope="module")
def deeper_onnx(deeper_digits: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deeper") / "deeper.onnx"
    export_onnx(deeper_digits, path)
    return path


@pytest.fixture
def mask_form(deeper_onnx: Path) -> onnx.ModelProto:
    """The deeper model, its attentions in the mask form; the last one has a single query."""
    model, _ = lowered_proto(deeper_onnx, "onnxruntime-cpu", form="mask", without=KERNELS)
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
    assert rewrite_head_layout(model) == 11
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
    for matrix, tensor in [*held.items()][::4]:
        np.testing.assert_allclose(
            logits(seen(model, matrix), 3),
            to_matrix(logits(seen(with_heads_in_place, tensor), 3)),
            rtol=1e-4,
            atol=1e-4,
        )


def test_a_layout_that_something_else_reads_keeps_its_order(
    with_heads_in_place: onnx.ModelProto,
) -> None:
    tokens_first = next(
        n
        for n in with_heads_in_place.graph.node
        if n.op_type == "Transpose" and list(n.attribute[0].ints) == [1, 0, 2]
    )
    before = seen(with_heads_in_place, tokens_first.output[0])
    model = copied(before)
    assert rewrite_token_major_layout(model) == 0
    assert model == before


def test_without_heads_in_place_there_is_nothing_to_gain(mask_form: onnx.ModelProto) -> None:
    model = copied(mask_form)
    assert rewrite_token_major_layout(model) == 0
    assert model == mask_form


def test_a_classifier_gets_them_all_and_a_change_of_its_outputs_undoes_them(
    deeper_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, done = lowered_proto(deeper_onnx, "onnxruntime-cpu")
    # The last block's attention has one query; its heads stay as they are.
    assert done.record("head_layout").applied == 11
    assert done.record("token_major_layout").applied > 0
    for name in KERNELS:
        assert done.record(name).error is not None

    def broken(model: onnx.ModelProto) -> int:
        head = next(n for n in model.graph.node if n.op_type == "Conv")
        tensor = next(t for t in model.graph.initializer if t.name == head.input[1])
        value = numpy_helper.to_array(tensor) * np.float32(1.001)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return 4

    replace_pass(monkeypatch, "head_layout", broken)
    proto, done = lowered_proto(deeper_onnx, "onnxruntime-cpu")
    record = done.record("head_layout")
    assert record.refused.endswith("its rounding fails the gate")
    assert record.applied == 0
    assert operators(proto)["FusedMatMul"] == 0


def test_openvino_keeps_the_operators_it_knows(digits_onnx: Path) -> None:
    _, done = lowered_proto(digits_onnx, "openvino")
    assert not {record.name for record in done.passes} & KERNELS
    assert done.model_dump()["kernels"]["refused"] == "not wanted"
