"""Attach the operator's function bodies to a graph whose nodes call it."""

from __future__ import annotations

import onnx_ir as ir

from bilateral_export.op import contract
from bilateral_export.op.onnx_body import Configuration, function_body


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """The operator's nodes, in graph order."""
    return [
        node
        for node in model.graph
        if node.domain == contract.DOMAIN and node.op_type == contract.OP_TYPE
    ]


def configuration_of(node: ir.Node) -> Configuration:
    """The configuration that a node's attributes and number of inputs say."""
    range_kernel = node.attributes[contract.RANGE_KERNEL].as_string()
    spatial_kernel = node.attributes[contract.SPATIAL_KERNEL].as_string()
    assert range_kernel in contract.RANGE_KERNELS
    assert spatial_kernel in contract.SPATIAL_KERNELS
    without_bias = len(contract.input_names(spatial_kernel, key_bias=False))
    return Configuration(
        range_kernel=range_kernel,
        spatial_kernel=spatial_kernel,
        causal=bool(node.attributes[contract.CAUSAL].as_int()),
        key_bias=len(node.inputs) > without_bias,
    )


def attach_functions(model: ir.Model) -> None:
    """Give a model the function body of every configuration its nodes use, in place.

    A function has one body. Where all nodes agree, it has the operator's plain name; where they do
    not, each configuration is an overload, which needs ONNX IR version 10.

    Requires: every attention node carries all attributes of the contract.
    Ensures: every attention node resolves to exactly one function of the model, which imports the
    same version of the standard operators as the model does.
    """
    nodes = attention_nodes(model)
    configurations = {configuration_of(node) for node in nodes}
    overloaded = len(configurations) > 1
    for configuration in sorted(configurations, key=lambda c: c.overload):
        proto = function_body(configuration, model.opset_imports[""])
        proto.overload = configuration.overload if overloaded else ""
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
    for node in nodes:
        node.overload = configuration_of(node).overload if overloaded else ""
    if nodes:
        model.opset_imports[contract.DOMAIN] = contract.VERSION
