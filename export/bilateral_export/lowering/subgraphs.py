"""Uses of a tensor inside the subgraphs of If and Loop, which name what they read nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def names_read(node: onnx.NodeProto) -> list[str]:
    """Return a node's inputs and all that its subgraphs read, their own tensors too."""
    return [*node.input, *(name for inner in _subnodes(node) for name in names_read(inner))]


def _subnodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield from attribute.g.node
