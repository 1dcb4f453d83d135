"""One file with the forms of short and of long images: an If on the image's size.

Which form of attention is fastest depends on the number of tokens, and where a file takes images of
several sizes, only the image says how many there are. The whole network is in both branches, each
as it is lowered for its form, so that no pass is lost at the border of an If. The weights of its
linear layers are in the file once where both read the same; those of the projections differ.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bilateral_export.graph.changes import read_metadata
from bilateral_export.lowering.attention_forms import FLASH_LENGTH
from bilateral_export.lowering.graph_edit import copied
from bilateral_export.metadata import ArtifactMetadata

_SHARED_BYTES = 1 << 16
_NAMES = ("short", "long")


def straddles(model: onnx.ModelProto) -> bool:
    """Return whether a model takes images of less than FLASH_LENGTH tokens, and of more."""
    about = read_metadata(model)
    if about is None or not about.image_sizes:
        return False
    (low, _, high), (left, _, right) = about.image_sizes.values()
    return low * left < _limit(about) <= high * right


def _limit(about: ArtifactMetadata) -> int:
    """Return the pixels of FLASH_LENGTH patches; one token more or less makes no difference."""
    return FLASH_LENGTH * int(about.model["patch_size"]) ** 2


def join_by_length(short: onnx.ModelProto, long: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of several sizes that computes short images as one does, others as another.

    Args:
        short: For images of less than FLASH_LENGTH patches.
        long: For the others; it has the same inputs and outputs.
    """
    about = read_metadata(short)
    assert about is not None
    joined = copied(short)
    graph = joined.graph
    branches = [copied(short).graph, copied(long).graph]
    shared = _shared(*branches)
    for name, branch in zip(_NAMES, branches, strict=True):
        _make_branch(branch, name, shared)
    outputs = [value.name for value in graph.output]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(shared.values())
    limit = numpy_helper.from_array(np.array(_limit(about)), "by_length.limit")
    graph.initializer.append(limit)
    image = graph.input[0].name
    graph.node.extend(
        [
            helper.make_node("Shape", [image], ["by_length.size"], start=2),
            helper.make_node("ReduceProd", ["by_length.size"], ["by_length.area"], keepdims=0),
            helper.make_node("Less", ["by_length.area", "by_length.limit"], ["by_length.short"]),
            helper.make_node(
                "If",
                ["by_length.short"],
                outputs,
                name="by_length",
                then_branch=branches[0],
                else_branch=branches[1],
            ),
        ]
    )
    known = {entry.domain for entry in joined.opset_import}
    joined.opset_import.extend(one for one in long.opset_import if one.domain not in known)
    return joined


def _shared(one: onnx.GraphProto, other: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the large weights of products that are in both graphs, by name.

    The rest stays in the branches, where ONNX Runtime's fusions look for constants.
    """
    theirs = {tensor.name: tensor for tensor in other.initializer}
    factors = {name for node in one.node if node.op_type == "MatMul" for name in node.input}
    return {
        tensor.name: tensor
        for tensor in one.initializer
        if tensor.name in factors
        and tensor.ByteSize() >= _SHARED_BYTES
        and tensor == theirs.get(tensor.name)
    }


def _make_branch(graph: onnx.GraphProto, name: str, shared: dict[str, TensorProto]) -> None:
    """Make a graph one branch of an If, in place: without inputs, with outputs of its own names."""
    graph.name = f"by_length.{name}"
    own = [tensor for tensor in graph.initializer if tensor.name not in shared]
    del graph.input[:], graph.initializer[:]
    graph.initializer.extend(own)
    renamed = {value.name: f"{graph.name}.{value.name}" for value in graph.output}
    for value in graph.output:
        value.name = renamed[value.name]
    for node in graph.node:
        for names in (node.input, node.output):
            for place, each in enumerate(names):
                names[place] = renamed.get(each, each)
