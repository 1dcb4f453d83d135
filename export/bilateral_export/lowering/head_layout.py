"""In-place head layout: queries, keys and values are read where their projection left them.

The mask form (attention_mask.py) splits one projection and moves its heads to the front: four
copies of `[B, N, H D]` for two products that read every number once. ONNX Runtime's FusedMatMul can
take the first axis as the row axis and those between as batch axes: with tokens first, it reads
`[N, B, H, D]` as `[B, H, N, D]`, and nothing is copied. Tokens are moved to the front before the
projection, which costs next to nothing for one item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bilateral_export.lowering.attention_pattern import HEADS_LAST, Graph, PreconditionError, Values
from bilateral_export.lowering.shapes import Shapes

DOMAIN = "com.microsoft"
_HEADS_LAST_COLUMNS = [0, 2, 3, 1]


@dataclass(frozen=True)
class HeadMoves:
    """The nodes of one attention that move heads, and the products that read them.

    Attributes:
        tokens: What is projected, `[B, N, dim]`.
        weight: `[dim, 3 H D]`.
        bias: `[3 H D]`.
        heads: H.
        depth: D.
        split: The node that makes three of one.
        logits: The product of queries and keys.
        mixed: The product of weights and values.
        square: The sum of the keys' squares; None for the dot range kernel.
        replaced: First outputs of the nodes that are no longer needed.
    """

    tokens: str
    weight: Values
    bias: Values
    heads: int
    depth: int
    split: onnx.NodeProto
    logits: onnx.NodeProto
    mixed: onnx.NodeProto
    square: onnx.NodeProto | None
    replaced: frozenset[str]


def rewrite_head_layout(model: onnx.ModelProto) -> int:
    """Rewrite every attention in the mask form, in place.

    Ensures: the same products of the same numbers; attentions in another form stay as they are.

    Returns:
        How many attentions.
    """
    graph, shapes = Graph(model), Shapes(model)
    new: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    for node in shapes.nodes:
        if node.op_type != "Split" or len(node.output) != 3:
            continue
        try:
            found = _read(graph, shapes, node)
        except PreconditionError:
            continue
        new |= _rewritten(model, found)
        gone |= found.replaced
    if not new:
        return 0
    kept: list[onnx.NodeProto] = []
    for node in shapes.nodes:
        name = node.output[0]
        kept += new.get(name, [] if name in gone else [node])
    nodes = onnx.GraphProto(node=kept).node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return sum(node.op_type == "Split" and node.output[0] in new for node in shapes.nodes)


def _read(graph: Graph, shapes: Shapes, split: onnx.NodeProto) -> HeadMoves:
    add = graph.made_by(split.input[0], "Add", "the projection")
    product = graph.made_by(add.input[0], "MatMul", "the projection")
    shapes.only_user(product.output[0], "Add")
    shapes.only_user(add.output[0], "Split")
    replaced = {product.output[0], add.output[0]}
    moved = []
    for part, order in zip(
        split.output, (HEADS_LAST, _HEADS_LAST_COLUMNS, HEADS_LAST), strict=True
    ):
        reshape = shapes.only_user(part, "Reshape")
        transpose = shapes.only_user(reshape.output[0], "Transpose")
        if list(transpose.attribute[0].ints) != order:
            raise PreconditionError("heads are moved in another way")
        replaced |= {reshape.output[0], transpose.output[0]}
        moved.append(transpose.output[0])
    logits = shapes.only_user(moved[0], "MatMul")
    mixed = shapes.only_user(moved[2], "MatMul")
    square = next((u for u in shapes.users[moved[1]] if u.op_type == "ReduceSumSquare"), None)
    readers = [logits] if square is None else [logits, square]
    if list(logits.input) != moved[:2] or mixed.input[1] != moved[2]:
        raise PreconditionError("the products are others")
    if square is not None and graph.constant(square.input[1], "an axis").tolist() != [2]:
        raise PreconditionError("another sum of squares")
    if {user.output[0] for user in shapes.users[moved[1]]} != {r.output[0] for r in readers}:
        raise PreconditionError("something else reads the keys")
    reshaped = graph.constant(shapes.only_user(split.output[0], "Reshape").input[1], "a shape")
    return HeadMoves(
        tokens=product.input[0],
        weight=graph.constant(product.input[1], "the projection's weight"),
        bias=graph.constant(add.input[1], "the projection's bias"),
        heads=int(reshaped[2]),
        depth=int(reshaped[3]),
        split=split,
        logits=logits,
        mixed=mixed,
        square=square,
        replaced=frozenset(replaced),
    )


def _rewritten(model: onnx.ModelProto, found: HeadMoves) -> dict[str, list[onnx.NodeProto]]:
    """Return the new nodes by the first output of the node that they replace."""
    base = found.split.output[0]

    def constant(name: str, value: Values | Sequence[int]) -> str:
        array = np.asarray(value)
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        tensor = numpy_helper.from_array(np.ascontiguousarray(array, dtype=kind), f"{base}.{name}")
        model.graph.initializer.append(tensor)
        return tensor.name

    def node(
        like: onnx.NodeProto, operator: str, inputs: Sequence[str], name: str, **attributes: Any
    ) -> onnx.NodeProto:
        made = helper.make_node(operator, inputs, [name], name, **attributes)
        made.metadata_props.extend(like.metadata_props)
        return made

    first = node(found.split, "Transpose", [found.tokens], f"{base}.first", perm=[1, 0, 2])
    projected = [first]
    by_head = constant("by_head", [0, 0, found.heads, found.depth])
    parts = []
    for name, weight, bias in zip(
        ("query", "key", "value"),
        np.split(found.weight, 3, axis=1),
        np.split(found.bias, 3),
        strict=True,
    ):
        inputs = [first.output[0], constant(f"{name}_weight", weight)]
        made = [node(found.split, "MatMul", inputs, f"{base}.{name}_product")]
        if bias.any():
            inputs = [made[-1].output[0], constant(f"{name}_bias", bias)]
            made.append(node(found.split, "Add", inputs, f"{base}.{name}_projected"))
        inputs = [made[-1].output[0], by_head]
        made.append(node(found.split, "Reshape", inputs, f"{base}.{name}"))
        projected += made
        parts.append(made[-1].output[0])
    query, key, value = parts
    new = {
        found.split.output[0]: projected,
        found.logits.output[0]: [
            node(
                found.logits,
                "FusedMatMul",
                [query, key],
                found.logits.output[0],
                domain=DOMAIN,
                transB=1,
                transBatchA=1,
                transBatchB=1,
            )
        ],
        found.mixed.output[0]: [
            node(
                found.mixed,
                "FusedMatMul",
                [found.mixed.input[0], value],
                found.mixed.output[0],
                domain=DOMAIN,
                transBatchB=1,
            )
        ],
    }
    if found.square is not None:
        squares = f"{base}.squares"
        last = constant("last_axis", [3])
        new[found.square.output[0]] = [
            node(found.square, "ReduceSumSquare", [key, last], squares, keepdims=1),
            node(found.square, "Transpose", [squares], found.square.output[0], perm=[1, 2, 3, 0]),
        ]
    return new
