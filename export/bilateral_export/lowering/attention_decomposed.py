"""Attention by its function body: every operator node inlined."""

from __future__ import annotations

import onnx
import onnx.inliner

from bilateral_export.op import contract


def decompose(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without functions that computes the same.

    Requires: every foreign node has its function in the file.
    Ensures: no function is left; every node says the module and the source line it is from.
    """
    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions
    _keep_provenance(model, inlined)
    _share_masks(model, inlined)
    return inlined


def _share_masks(model: onnx.ModelProto, inlined: onnx.ModelProto) -> None:
    """Let causal attentions at the same positions read how many there are from the first, in place.

    Every body makes distances and masks of its own, from its own queries and keys. When all read
    the same shapes, a runtime finds that they are equal, and computes them once. They are half the
    nodes of a language model, and most of the time of one new token outside of matrix products.
    """
    firsts: dict[tuple[str, ...], onnx.NodeProto] = {}
    same: dict[str, str] = {}
    for call in model.graph.node:
        attributes = {attribute.name: attribute for attribute in call.attribute}
        if call.domain != contract.DOMAIN or not attributes[contract.CAUSAL].i:
            continue
        if attributes[contract.SPATIAL_KERNEL].s == b"gaussian":
            first = firsts.setdefault(tuple(call.input[3:5]), call)
            same |= zip(call.input[:2], first.input[:2], strict=True)
    for node in inlined.graph.node:
        if node.op_type == "Shape" and node.input[0] in same:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            if ends == {"start": 2, "end": 3}:  # the tokens
                node.input[0] = same[node.input[0]]


def _keep_provenance(model: onnx.ModelProto, inlined: onnx.ModelProto) -> None:
    """Give a body's nodes the metadata and the name of the node they stand for, in place."""
    calls = {node.output[0]: node for node in model.graph.node if node.domain == contract.DOMAIN}
    call: onnx.NodeProto | None = None
    for node in reversed(inlined.graph.node):
        call = calls.get(node.output[0], call)
        if call is not None and not node.metadata_props:
            node.metadata_props.extend(call.metadata_props)
            last = node.output[0] == call.output[0]
            node.name = call.name if last else f"{call.name}.{node.output[0]}"
