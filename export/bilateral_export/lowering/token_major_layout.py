"""Token-major layout: tokens stay the rows of one matrix from attention to attention.

The head layout (head_layout.py) needs tokens before items and moves what comes and goes. Between
attentions each token is computed by itself, so all of that can work on one matrix `[N B, dim]`, the
first token of every item before the second of any. Then nothing has to be moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bilateral_export.graph.token_matrices import record_matrices
from bilateral_export.lowering.attention_pattern import HEADS_LAST, Graph, PreconditionError
from bilateral_export.lowering.shapes import Shapes

# The layout of the original tensor: `[B, N, width]` or `[N, B, width]`.
Order = Literal["batch_major", "token_major"]

_SWAPPED = [1, 0, 2]


@dataclass(frozen=True)
class TokenMatrix:
    """The matrix that a tensor of the graph has become.

    Attributes:
        name: The matrix `[N B, width]`.
        order: The layout of the tensor itself.
        width: Of a row.
    """

    name: str
    order: Order
    width: int


@dataclass
class _Rewrite:
    """The new graph, built node by node; tensors are looked up by their old names.

    Attributes:
        length: N; None where only an image says it.
        count: Name of N `[1]` in the graph, in that case.
        matrices: Tensors that are matrices now.
        kept: Those of them that are there as they were, too.
        first: Tensors `[B, N, H, D]` that are `[N, B, H, D]` now, and their names.
        attended: Queries, keys and values that are read in place.
        nodes: The new nodes.
        sizes: The new shapes for Reshape, by name.
    """

    length: int | None
    count: str = ""
    matrices: dict[str, TokenMatrix] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    first: dict[str, str] = field(default_factory=dict)
    attended: set[str] = field(default_factory=set)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    sizes: dict[str, list[int]] = field(default_factory=dict)

    def add(
        self, like: onnx.NodeProto, operator: str, inputs: Sequence[str], name: str, **given: Any
    ) -> str:
        """Add a tensor beside the output of an old node, and return its name."""
        return self._append(like, operator, f"{name}.{operator}", inputs, name, **given)

    def replace(
        self, node: onnx.NodeProto, operator: str, inputs: Sequence[str], name: str, **given: Any
    ) -> str:
        """Add a tensor in the place of an old node, whose name stays; return its name."""
        return self._append(node, operator, node.name, inputs, name, **given)

    def _append(
        self,
        like: onnx.NodeProto,
        operator: str,
        node_name: str,
        inputs: Sequence[str],
        name: str,
        **given: Any,
    ) -> str:
        made = helper.make_node(operator, inputs, [name], node_name, **given)
        made.metadata_props.extend(like.metadata_props)
        self.nodes.append(made)
        return name

    def shape(self, *sizes: int | None) -> str:
        """Add a shape for Reshape and return its name; None is N, where only an image says it."""
        name = "tokens_first." + "x".join("N" if size is None else str(size) for size in sizes)
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes):
            self.sizes[name] = known
        elif not any(name in node.output for node in self.nodes):
            self.sizes[f"{name}.rest"] = known
            inputs = [self.count, f"{name}.rest"]
            self.nodes.append(helper.make_node("Concat", inputs, [name], name, axis=0))
        return name

    def held(self) -> dict[str, str]:
        """Return, by matrix, the first tensor in graph order that it holds."""
        held: dict[str, str] = {}
        for name, rows in self.matrices.items():
            if rows.order == "batch_major":
                held.setdefault(rows.name, name)
        return held

    def restore(self, like: onnx.NodeProto, name: str) -> None:
        """Restore a tensor's old layout for a node that reads it."""
        rows = self.matrices.get(name)
        if name in self.first or (rows and rows.order != "batch_major"):
            raise PreconditionError(f"{like.name} reads {name} in another order")
        if rows and name not in self.kept:
            by_token = self.shape(self.length, -1, rows.width)
            first = self.add(like, "Reshape", [rows.name, by_token], f"{name}.tokens_first")
            self.add(like, "Transpose", [first], name, perm=_SWAPPED)
            self.kept.add(name)


def rewrite_token_major_layout(model: onnx.ModelProto) -> int:
    """Rewrite what is between attentions with the in-place head layout.

    Ensures: the same products of the same numbers; the metadata says what each matrix holds. A
    graph without such attentions, or that would not have fewer nodes, stays as it is.

    Returns:
        How many nodes fewer there are.
    """
    graph, shapes = Graph(model), Shapes(model)
    try:
        rewrite = _rewritten(graph, shapes, _root(graph, shapes))
    except PreconditionError:
        return 0
    fewer = len(shapes.nodes) - len(rewrite.nodes)
    if fewer <= 0:
        return 0
    nodes = onnx.GraphProto(node=rewrite.nodes).node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(sizes, dtype=np.int64), name)
        for name, sizes in rewrite.sizes.items()
    )
    record_matrices(model, rewrite.held())
    return fewer


def _root(graph: Graph, shapes: Shapes) -> str:
    """Return the tensor from which the first attention's tokens are computed, each by itself."""
    for node in shapes.nodes:
        if node.op_type == "Transpose" and list(node.attribute[0].ints) == _SWAPPED:
            name = node.input[0]
            while name in graph.producers:
                sources = _sources(shapes, graph.producers[name])
                if len(sources) != 1:
                    return name
                (name,) = sources
    raise PreconditionError("no attention reads its heads in place")


def _rewritten(graph: Graph, shapes: Shapes, root: str) -> _Rewrite:
    length, width = shapes.fixed(root, 1), shapes.fixed(root, 2)
    if shapes.rank(root) != 3 or width is None:
        raise PreconditionError(f"{root} is not of a fixed size")
    rewrite = _Rewrite(length, f"{root}.length")
    for node in shapes.nodes:
        if not (_by_token(rewrite, shapes, node) or _moves(rewrite, graph, shapes, node)):
            for name in node.input:
                rewrite.restore(node, name)
            rewrite.nodes.append(node)
        if root in node.output:
            if length is None:
                rewrite.add(node, "Shape", [root], rewrite.count, start=1, end=2)
            first = rewrite.add(node, "Transpose", [root], f"{root}.tokens_first", perm=_SWAPPED)
            flat = rewrite.shape(-1, width)
            rows = rewrite.add(node, "Reshape", [first, flat], f"{root}.matrix")
            rewrite.matrices[root] = TokenMatrix(rows, "batch_major", width)
            rewrite.kept.add(root)
    for name in shapes.outputs:
        rewrite.restore(graph.producers[name], name)
    return rewrite


def _sources(shapes: Shapes, node: onnx.NodeProto) -> list[str]:
    """Return a node's inputs that are not constant; none if it may mix tokens."""
    ranks = [shapes.rank(name) if name in shapes.constants else None for name in node.input]
    moving = [name for name in node.input if name and name not in shapes.constants]
    given = {attribute.name: attribute.i for attribute in node.attribute}
    constant = [rank for rank in ranks if rank is not None]
    match node.op_type:
        case "Add" | "Sub" | "Mul" | "Gelu":
            alone = all(rank <= 1 for rank in constant)
        case "LayerNormalization":
            alone = given.get("axis", -1) == -1 and constant == [1] * (len(ranks) - 1)
        case "Split":
            alone = given.get("axis", 0) in (-1, 2) and constant == [1]
        case "MatMul":
            alone = ranks == [None, 2]
        case _:
            alone = False
    return moving if alone else []


def _by_token(rewrite: _Rewrite, shapes: Shapes, node: onnx.NodeProto) -> bool:
    """Let a node that computes each token by itself work on matrices; return whether it does."""
    sources = _sources(shapes, node)
    rows = [rewrite.matrices[name] for name in sources if name in rewrite.matrices]
    orders = {source.order for source in rows}
    if not sources or len(rows) != len(sources) or len(orders) != 1:
        return False
    made = onnx.NodeProto()
    made.CopyFrom(node)
    widths = [max(source.width for source in rows)]
    if node.op_type == "MatMul":
        widths = [shapes.constants[node.input[1]].dims[1]]
    if node.op_type == "Split":
        widths = numpy_helper.to_array(shapes.constants[node.input[1]]).tolist()
        next(a for a in made.attribute if a.name == "axis").i = 1
    (order,) = orders
    for place, name in enumerate(node.input):
        if name in rewrite.matrices:
            made.input[place] = rewrite.matrices[name].name
    for place, (name, width) in enumerate(zip(node.output, widths, strict=True)):
        made.output[place] = f"{name}.matrix"
        rewrite.matrices[name] = TokenMatrix(made.output[place], order, width)
    rewrite.nodes.append(made)
    return True


def _moves(rewrite: _Rewrite, graph: Graph, shapes: Shapes, node: onnx.NodeProto) -> bool:
    """Let a node that moves or picks tokens use a matrix, or drop it; return whether it does."""
    if not node.input:
        return False
    name, made = node.input[0], node.output[0]
    rows = None if name in rewrite.kept else rewrite.matrices.get(name)
    match node.op_type:
        case "Transpose":
            return _transposes(rewrite, graph, node)
        case "Reshape" if (sizes := graph.value(node.input[1])) is not None:
            return _reshapes(rewrite, node, [int(size) for size in sizes])
        case "Gather" if rows and _picks_tokens(shapes, node, rows):
            picks_one = shapes.rank(node.input[1]) == 0
            by_token = rewrite.shape(rewrite.length, -1, rows.width)
            first = rewrite.add(node, "Reshape", [rows.name, by_token], f"{made}.tokens_first")
            picked = made if picks_one else f"{made}.picked"
            rewrite.replace(node, "Gather", [first, node.input[1]], picked, axis=0)
            if not picks_one:
                rewrite.add(node, "Transpose", [picked], made, perm=_SWAPPED)
            return True
    return False


def _picks_tokens(shapes: Shapes, node: onnx.NodeProto, rows: TokenMatrix) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return rows.order == "batch_major" and axis == 1 and shapes.rank(node.input[1]) in (0, 1)


def _transposes(rewrite: _Rewrite, graph: Graph, node: onnx.NodeProto) -> bool:
    (name,), (made,) = node.input, node.output
    order = list(node.attribute[0].ints)
    known = rewrite.matrices.get(name)
    if known and known.order == "batch_major" and order == _SWAPPED:
        rewrite.matrices[made] = replace(known, order="token_major")
        return True
    if name in rewrite.first:
        swapped = [(1, 0, 2, 3)[axis] for axis in order]
        rewrite.replace(node, "Transpose", [rewrite.first[name]], made, perm=swapped)
        return True
    mixed = graph.producers.get(name)
    if mixed is None or mixed.op_type != "FusedMatMul" or order != HEADS_LAST:
        return False
    if mixed.input[1] not in rewrite.attended:
        return False
    moved = f"{made}.tokens_first"
    rewrite.first[made] = rewrite.replace(node, "Transpose", [name], moved, perm=[2, 0, 1, 3])
    return True


def _reshapes(rewrite: _Rewrite, node: onnx.NodeProto, sizes: list[int]) -> bool:
    name, made = node.input[0], node.output[0]
    if name in rewrite.first and sizes[:2] == [0, 0] and len(sizes) == 3:
        inputs = [rewrite.first[name], rewrite.shape(-1, sizes[2])]
        rows = rewrite.replace(node, "Reshape", inputs, f"{made}.matrix")
        rewrite.matrices[made] = TokenMatrix(rows, "batch_major", sizes[2])
        return True
    if name not in rewrite.matrices:
        return False
    known = rewrite.matrices[name]
    by_head = sizes[:2] == [0, 0] and len(sizes) == 4
    inputs = [known.name, rewrite.shape(rewrite.length, -1, *sizes[2:])] if by_head else []
    match known.order:
        case "batch_major" if by_head:
            first = rewrite.replace(node, "Reshape", inputs, f"{made}.tokens_first")
            rewrite.first[made] = first
        case "token_major" if by_head:
            rewrite.attended.add(rewrite.replace(node, "Reshape", inputs, made))
        case _:
            return False
    return True
