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
    return inlined


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
