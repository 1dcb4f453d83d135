"""What nodes read, in the subgraphs of If and Loop too, which name it nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield a node's inputs and all that its subgraphs read and return, their own tensors too."""
    yield from node.input
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                yield from names_read(inner)
            yield from (output.name for output in branch.output)


def needed_for(
    outputs: Iterable[str], nodes: Sequence[onnx.NodeProto]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that outputs depend on, in their order, and the names of all that is read.

    Args:
        outputs: Names of tensors; they are among the names returned.
        nodes: In topological order, as a graph has them.
    """
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(names_read(node))
            kept.append(node)
    return kept[::-1], needed
