"""Push-down of the output's Gather: only the tokens that are read are computed.

A classifier reads one token of `[B, N, dim]`, the class token. What is computed token by token
(norms, linear layers, sums, the queries of an attention) is then needed for that token alone, back
to where other tokens are read as well: the keys and values of the last attention. In a model of
twelve layers that is about a fourteenth of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bilateral_export.lowering.attention_pattern import PreconditionError
from bilateral_export.lowering.shapes import Shapes

# By operator, the inputs that have the output's tokens; all others are constants or keys, values.
_BY_TOKEN = {
    "LayerNormalization": (0,),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "Gelu": (0,),
    "Erf": (0,),
    "MatMul": (0,),
    "Softmax": (0,),
    "Reshape": (0,),
    "Transpose": (0,),
    "MultiHeadAttention": (0,),
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0,),
}
_FIRST_AXIS = 1


@dataclass(frozen=True)
class Cut:
    """A tensor of which some tokens are needed, along one axis."""

    name: str
    axis: int


@dataclass(frozen=True)
class _Found:
    """What can be computed for fewer tokens.

    Attributes:
        graph: The model before.
        cuts: Tensors of which some tokens are needed, and their axis.
        smaller: By the output of a node that computes fewer, its inputs and their axes.
        gathers: Where the tokens are taken.
        tokens: Which ones.
        readers: Nodes that read them.
    """

    graph: Shapes
    cuts: dict[str, int]
    smaller: dict[str, dict[str, int]]
    gathers: list[Cut]
    tokens: list[int]
    readers: list[str]


def push_down_gather(model: onnx.ModelProto) -> int:
    """Gather the tokens that the outputs read as early as that is possible, in place.

    Ensures: only what nothing reads is left out; the rest is computed by the same operators.

    Returns:
        How many nodes have fewer tokens now.

    Raises:
        PreconditionError: No tensor is read by Gather along its tokens only.
    """
    found = _find(model)
    _apply(model, found)
    return len(found.smaller)


def read_in_part(model: onnx.ModelProto) -> frozenset[str]:
    """Return the tensors of which `push_down_gather` would find that some tokens are needed."""
    try:
        return frozenset(_find(model).cuts)
    except PreconditionError:
        return frozenset()


def _find(model: onnx.ModelProto) -> _Found:
    graph = Shapes(model)
    final, tokens, readers = _final(graph)
    cuts = {final: _FIRST_AXIS}
    smaller: dict[str, dict[str, int]] = {}
    gathers: list[Cut] = []
    for node in reversed(graph.nodes):
        for name in set(node.output) & set(cuts):
            axis = cuts[name]
            wanted = _inputs_by_token(graph, node, axis)
            agreed = name not in graph.outputs and all(
                user.output[0] in readers
                or (smaller.get(user.output[0], {}).get(name) == axis and not _whole(user, name))
                for user in graph.users[name]
            )
            if wanted is None or not agreed or any(cuts.get(n, a) != a for n, a in wanted.items()):
                gathers.append(Cut(name, axis))
            else:
                smaller[name] = wanted
                cuts |= wanted
    if not smaller:
        raise PreconditionError("what is read is not computed token by token")
    return _Found(graph, cuts, smaller, gathers, tokens, readers)


def _whole(user: onnx.NodeProto, name: str) -> bool:
    """Return whether a node needs all tokens of an input, whatever it needs of others."""
    return any(
        entry == name and position not in _BY_TOKEN[user.op_type]
        for position, entry in enumerate(user.input)
    )


def _inputs_by_token(graph: Shapes, node: onnx.NodeProto, axis: int) -> dict[str, int] | None:
    """Return the inputs that need fewer tokens when the output does, and along which axis.

    None where the node does not work token by token, or where that is not known.
    """
    rank = graph.rank(node.output[0])
    if node.op_type not in _BY_TOKEN or rank is None or len(node.output) != 1:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Transpose":
        return {node.input[0]: attributes["perm"][axis]}
    if node.op_type in ("LayerNormalization", "Softmax"):
        last = attributes.get("axis", -1) in (-1, rank - 1) and axis != rank - 1
        return {node.input[0]: axis} if last else None
    if node.op_type == "MatMul" and axis != rank - 2:
        return None
    if node.op_type == "Reshape":
        # Zeros keep an axis: the shape stays right for fewer tokens.
        shape = graph.constants.get(node.input[1])
        kept = [] if shape is None else numpy_helper.to_array(shape).tolist()
        same = len(kept) > axis and all(size == 0 for size in kept[: axis + 1])
        return {node.input[0]: axis} if same else None
    wanted = {}
    for position in _BY_TOKEN[node.op_type]:
        entry = node.input[position]
        other = graph.rank(entry)
        if other is None or (entry not in graph.made and entry not in graph.constants):
            return None
        of_entry = axis - (rank - other)  # broadcasting counts from the end
        if of_entry < 0 or graph.size(entry, of_entry) == 1:
            continue  # the same for every token
        wanted[entry] = of_entry
    return wanted


def _final(graph: Shapes) -> tuple[str, list[int], list[str]]:
    """Return the tensor whose tokens are read, which ones, and by which nodes."""
    readers = [node for node in graph.nodes if node.op_type == "Gather" and _picks(graph, node)]
    names = {node.input[0] for node in readers}
    if len(names) != 1:
        raise PreconditionError("no single tensor is read token by token")
    (name,) = names
    outputs = [node.output[0] for node in readers]
    users = {user.output[0] for user in graph.users[name]}
    if users != set(outputs) or name in graph.outputs:
        raise PreconditionError("all tokens are read")
    tokens = {int(numpy_helper.to_array(graph.constants[node.input[1]])) for node in readers}
    return name, sorted(tokens), outputs


def _picks(graph: Shapes, node: onnx.NodeProto) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    index = graph.constants.get(node.input[1])
    if axis != _FIRST_AXIS or index is None or graph.rank(node.input[0]) != 3:
        return False
    value: NDArray[np.generic] = numpy_helper.to_array(index)
    return value.ndim == 0 and int(value) >= 0


def _apply(model: onnx.ModelProto, found: _Found) -> None:
    graph, cuts, smaller = found.graph, found.cuts, found.smaller
    gathers, tokens, readers = found.gathers, found.tokens, found.readers
    indices = "rows_read"
    new = {indices: np.array(tokens, dtype=np.int64)}
    # Fewer tokens get another name: parity compares what kept its own.
    renamed = {name: f"{name}.read" for name in [*smaller, *(cut.name for cut in gathers)]}
    behind = {
        cut.name: helper.make_node(
            "Gather", [cut.name, indices], [renamed[cut.name]], renamed[cut.name], axis=cut.axis
        )
        for cut in gathers
    }
    for name, axis in cuts.items():
        if name in graph.constants:
            renamed[name] = f"{name}.read"
            value = numpy_helper.to_array(graph.constants[name])
            new[renamed[name]] = np.ascontiguousarray(value.take(tokens, axis=axis))
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        name = node.output[0]
        if name in smaller:
            for position in _BY_TOKEN[node.op_type]:
                entry = node.input[position]
                if entry in renamed and entry in cuts:
                    node.input[position] = renamed[entry]
            node.output[0] = renamed[name]
        elif name in readers:
            node.input[0] = renamed[node.input[0]]
            place = tokens.index(int(numpy_helper.to_array(graph.constants[node.input[1]])))
            new[f"{name}.place"] = np.array(place, dtype=np.int64)
            node.input[1] = f"{name}.place"
        kept.append(node)
        kept += [behind[output] for output in node.output if output in behind]
    nodes = onnx.GraphProto(node=kept).node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # The shapes that were recorded of them have too many tokens now.
    recorded = [value for value in model.graph.value_info if value.name not in smaller]
    values = onnx.GraphProto(value_info=recorded).value_info
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in new.items()
    )
