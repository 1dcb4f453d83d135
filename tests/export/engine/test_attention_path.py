from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bilateral_export.engine.attention_path import (
    attention_nodes,
    name_attention_nodes,
    use_function_bodies,
)
from bilateral_export.op.contract import OperatorVariant

MIXED = (
    OperatorVariant("dot", "gaussian"),
    OperatorVariant("gaussian", "gaussian"),
    OperatorVariant("dot", "dot", causal=True),
    OperatorVariant("dot", "none", key_bias=True),
)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    random = np.random.default_rng(1)
    arrays = {
        value.name: random.normal(size=(2, *(d.dim_value for d in dims[1:]))).astype(np.float32)
        for value in model.graph.input
        for dims in [value.type.tensor_type.shape.dim]
    }
    (output,) = session.run(None, arrays)
    return np.asarray(output)


@pytest.mark.parametrize("configurations", [MIXED[:1], MIXED])
def test_the_prepared_graph_computes_the_same(make_model, configurations) -> None:
    model = onnx.load(make_model(*configurations))
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    use_function_bodies(prepared)
    onnx.checker.check_model(prepared, full_check=True)
    assert np.array_equal(run(prepared), run(model))


def test_bodies_are_told_apart_by_name_alone_afterwards(make_model) -> None:
    model = onnx.load(make_model(*MIXED))
    assert len({function.name for function in model.functions}) == 1
    use_function_bodies(model)
    assert len({(f.domain, f.name) for f in model.functions}) == len(MIXED)
    assert not any(function.overload for function in model.functions)
    assert attention_nodes(model) == ()


def test_no_node_asks_for_the_plugin_afterwards(make_model) -> None:
    model = onnx.load(make_model(*MIXED[:1]))
    use_function_bodies(model)
    (node,) = (node for node in model.graph.node if node.domain == "ai.bilateral")
    assert not {"plugin_namespace", "plugin_version"} & {a.name for a in node.attribute}
    assert {"scale", "query_prefix"} <= {a.name for a in node.attribute}


def test_unnamed_and_doubled_nodes_get_names_of_their_own(make_model) -> None:
    model = onnx.load(make_model(*MIXED[:1] * 3, overloads=False))
    first, second, third = attention_nodes(model)
    first.name, second.name, third.name = "", "same", "same"
    names = name_attention_nodes(model)
    assert len(set(names)) == 3
    assert names[1] == "same"
    assert [node.name for node in attention_nodes(model)] == list(names)


def test_nodes_in_subgraphs_and_functions_are_found(make_model, tmp_path: Path) -> None:
    model = onnx.load(make_model(*MIXED[:2]))
    inner = attention_nodes(model)[0]
    branch = onnx.helper.make_graph([inner], "branch", [], [])
    wrapper = onnx.helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, wrapper)
    assert len(attention_nodes(model)) == 4
