"""The operator's ONNX body computes what the torch operator does, on every option and opset."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from bilateral_export.op import contract, torch_op
from bilateral_export.op.contract import OperatorVariant
from bilateral_export.op.onnx_body import function_body, same_body

CONFIGURATIONS = [
    OperatorVariant(range_kernel, spatial_kernel, causal, key_bias)
    for range_kernel, spatial_kernel, causal, key_bias in itertools.product(
        contract.RANGE_KERNELS, contract.SPATIAL_KERNELS, (False, True), (False, True)
    )
]
BATCH, HEADS, N_QUERY, N_KEY, DEPTH = 2, 3, 5, 7, 8


def call(
    configuration: OperatorVariant, output: str = "output", overload: str = ""
) -> onnx.NodeProto:
    return helper.make_node(
        contract.OP_TYPE,
        list(contract.input_names(configuration.spatial_kernel, configuration.key_bias)),
        [output],
        domain=contract.DOMAIN,
        overload=overload,
        scale=0.25,
        range_kernel=configuration.range_kernel,
        spatial_kernel=configuration.spatial_kernel,
        query_prefix=1,
        key_prefix=2,
        causal=int(configuration.causal),
        plugin_namespace=contract.DOMAIN,
        plugin_version=str(contract.VERSION),
    )


def model_of(
    nodes: list[onnx.NodeProto],
    functions: list[onnx.FunctionProto],
    feeds: dict[str, np.ndarray],
    opset: int,
) -> onnx.ModelProto:
    output_shape = [BATCH, HEADS, N_QUERY, DEPTH]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()],
        [
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, output_shape)
            for node in nodes
        ],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(contract.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def feeds_of(configuration: OperatorVariant) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {
        "query": (BATCH, HEADS, N_QUERY, DEPTH),
        "key": (BATCH, HEADS, N_KEY, DEPTH),
        "value": (BATCH, HEADS, N_KEY, DEPTH),
    }
    if configuration.spatial_kernel == "gaussian":
        shapes |= {"query_positions": (N_QUERY, 2), "key_positions": (N_KEY, 2)}
    if configuration.spatial_kernel == "dot":
        shapes |= {"query_positions": (HEADS, N_QUERY, 4), "key_positions": (HEADS, N_KEY, 4)}
    feeds = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    if configuration.spatial_kernel == "gaussian":
        feeds["bandwidth"] = np.array([1e-3, 1.0, math.inf])
    if configuration.key_bias:
        feeds["key_bias"] = np.where(np.arange(N_KEY) > 3, -math.inf, 0.5) * np.ones((BATCH, 1))
        feeds["key_bias"][1] = 0
    return {name: array.astype(np.float32) for name, array in feeds.items()}


def torch_answer(configuration: OperatorVariant, feeds: dict[str, np.ndarray]) -> np.ndarray:
    names = ("query", "key", "value", "query_positions", "key_positions", "bandwidth", "key_bias")
    tensors = [torch.from_numpy(feeds[name]) if name in feeds else None for name in names]
    return torch_op.bilateral_attention(
        *tensors,
        0.25,
        configuration.range_kernel,
        configuration.spatial_kernel,
        1,
        2,
        configuration.causal,
    ).numpy()


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.overload)
def test_onnx_runtime_computes_the_torch_operator(configuration: OperatorVariant) -> None:
    feeds = feeds_of(configuration)
    for opset in (18, 22, 25):
        model = model_of([call(configuration)], [function_body(configuration, opset)], feeds, opset)
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (answer,) = session.run(None, feeds)
        expected = torch_answer(configuration, feeds)
        np.testing.assert_allclose(answer, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.overload)
def test_its_constants_have_a_type_which_tools_that_fold_constants_keep(
    configuration: OperatorVariant,
) -> None:
    body = function_body(configuration, 22)
    constants = [node.attribute[0] for node in body.node if node.op_type == "Constant"]
    assert all(constant.name == "value" or constant.ref_attr_name for constant in constants)

    graphsurgeon = pytest.importorskip("onnx_graphsurgeon", reason="it is not installed")
    feeds = feeds_of(configuration)
    graph = graphsurgeon.import_onnx(model_of([call(configuration)], [body], feeds, 22))
    folded = graphsurgeon.export_onnx(graph.fold_constants().cleanup())
    (answer,) = onnxruntime.InferenceSession(folded.SerializeToString()).run(None, feeds)
    expected = torch_answer(configuration, feeds)
    np.testing.assert_allclose(answer, expected, rtol=2e-4, atol=2e-6)


def test_the_same_body_is_known_and_another_is_not() -> None:
    bodies = {configuration: function_body(configuration, 22) for configuration in CONFIGURATIONS}
    for found, body in bodies.items():
        plain = onnx.FunctionProto()
        plain.CopyFrom(body)
        for node in plain.node:  # as version 0.1.0 wrote it
            if node.op_type == "Constant" and not node.attribute[0].ref_attr_name:
                value = onnx.numpy_helper.to_array(node.attribute[0].t)
                kind = {"f": "float", "i": "int"}[value.dtype.kind] + "s" * value.ndim
                node.attribute[0].CopyFrom(helper.make_attribute(f"value_{kind}", value.tolist()))
        for other in CONFIGURATIONS:
            assert same_body(body, other, 22) == same_body(plain, other, 22) == (found == other)


def test_one_file_may_hold_several_configurations_as_overloads() -> None:
    pair = [OperatorVariant("dot", "none"), OperatorVariant("gaussian", "gaussian")]
    functions = [function_body(configuration, 22) for configuration in pair]
    for function, configuration in zip(functions, pair, strict=True):
        function.overload = configuration.overload
    nodes = [call(c, output=c.overload, overload=c.overload) for c in pair]
    feeds = feeds_of(pair[1])
    model = model_of(nodes, functions, feeds, 22)
    onnx.checker.check_model(model, full_check=True)
    answers = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    tokens = {name: feeds[name] for name in ("query", "key", "value")}
    for answer, configuration, given in zip(answers, pair, (tokens, feeds), strict=True):
        expected = torch_answer(configuration, given)
        np.testing.assert_allclose(answer, expected, rtol=2e-4, atol=2e-6)
