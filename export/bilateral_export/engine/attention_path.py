"""Attention in a graph for TensorRT's parser: by the plugin, or by the function body.

The parser takes a registered plugin when a node carries `plugin_namespace` and `plugin_version`
that match it, and the function body otherwise. It looks a function up by domain and name alone:
where a file holds several bodies of the operator, distinguished by `overload` (ONNX IR 10), it
would take the first for every node, silently where the inputs are as many. So for the body path the
bodies get names of their own first.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from bilateral_export.op import contract

_PLUGIN_ATTRIBUTES = (contract.PLUGIN_NAMESPACE, contract.PLUGIN_VERSION)


def attention_nodes(model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Return the BilateralAttention nodes of the graph, its subgraphs and local functions."""
    return tuple(node for node in _all_nodes(model) if _is_attention(node))


def name_attention_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Give every attention node a name that no other node has, and return the names.

    TensorRT names layers after nodes: two of one name could not be distinguished.
    """
    taken = {node.name for node in _all_nodes(model) if not _is_attention(node)}
    names = []
    for number, node in enumerate(attention_nodes(model)):
        if not node.name or node.name in taken:
            node.name = f"bilateral_attention_{number}"
        taken.add(node.name)
        names.append(node.name)
    return tuple(names)


def use_function_bodies(model: onnx.ModelProto) -> None:
    """Make every attention node run through its function body, plugin or not. In place."""
    for node in attention_nodes(model):
        kept = [a for a in node.attribute if a.name not in _PLUGIN_ATTRIBUTES]
        del node.attribute[:]
        node.attribute.extend(kept)
    _name_by_overload(model)


def _name_by_overload(model: onnx.ModelProto) -> None:
    for function in model.functions:
        if _is_operator(function.domain, function.name) and function.overload:
            function.name = _own_name(function.overload)
            function.overload = ""
    for node in _all_nodes(model):
        if _is_attention(node) and node.overload:
            node.op_type = _own_name(node.overload)
            node.overload = ""


def _own_name(overload: str) -> str:
    return f"{contract.OP_TYPE}_{overload}"


def _is_attention(node: onnx.NodeProto) -> bool:
    return _is_operator(node.domain, node.op_type)


def _is_operator(domain: str, name: str) -> bool:
    return domain == contract.DOMAIN and name == contract.OP_TYPE


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _walk(model.graph.node)
    for function in model.functions:
        yield from _walk(function.node)


def _walk(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _walk(attribute.g.node)
