"""Function bodies of the operator in a graph whose nodes call it."""

from __future__ import annotations

import onnx_ir as ir

from bilateral_export.op import contract
from bilateral_export.op.contract import OperatorVariant
from bilateral_export.op.onnx_body import function_body


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the operator's nodes, in graph order."""
    return [
        node
        for node in model.graph
        if node.domain == contract.DOMAIN and node.op_type == contract.OP_TYPE
    ]


def variant_of(node: ir.Node) -> OperatorVariant:
    """Return the variant that a node's attributes and number of inputs say."""
    return OperatorVariant.of(
        {name: attribute.value for name, attribute in node.attributes.items()}, len(node.inputs)
    )


def attach_functions(model: ir.Model) -> None:
    """Give a model the function body of every variant its nodes use, in place.

    A function has one body. Where all nodes agree, it has the operator's plain name; where they do
    not, each variant is an overload, which needs ONNX IR version 10.

    Requires: every attention node carries all attributes of the contract.
    Ensures: every attention node resolves to exactly one function of the model, which imports the
    same version of the standard operators as the model does.
    """
    nodes = attention_nodes(model)
    variants = {variant_of(node) for node in nodes}
    overloaded = len(variants) > 1
    for variant in sorted(variants, key=lambda variant: variant.overload):
        proto = function_body(variant, model.opset_imports[""])
        proto.overload = variant.overload if overloaded else ""
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
    for node in nodes:
        node.overload = variant_of(node).overload if overloaded else ""
    if nodes:
        model.opset_imports[contract.DOMAIN] = contract.VERSION
