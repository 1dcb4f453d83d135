"""Uses of a tensor inside the subgraphs of If and Loop, which name what they read nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield a node's inputs and all that its subgraphs read and return, their own tensors too."""
    yield from node.input
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                yield from names_read(inner)
            yield from (output.name for output in branch.output)
