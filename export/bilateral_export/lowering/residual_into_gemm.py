"""Let the linear layer that ends a branch add the share of x0 that the next norm reads.

Where the norms read different shares of x0 (stream.py), each takes a product and a difference over
`[B, N, dim]`. But Gemm is alpha A W + beta C: with C = x0, the matrix product that computes the
branch adds what the share grows by, from one norm to the next, on its way. The running sum is then
what the norms read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bilateral_export.lowering.attention_pattern import Graph
from bilateral_export.lowering.shapes import Shapes


@dataclass(frozen=True)
class Step:
    """One difference of the running sum, `after = before - (tokens weight + bias)`.

    Attributes:
        before: The sum that it starts from.
        after: The sum that it makes.
        product: The branch's MatMul.
        bias: The Add behind it.
        share: How much of x0 the norm behind it takes away from the sum.
        taken: The two nodes that do so; none where the norm reads the sum itself.
    """

    before: str
    after: str
    product: onnx.NodeProto
    bias: onnx.NodeProto
    share: float
    taken: tuple[onnx.NodeProto, ...]


def fold_residual_into_gemm(model: onnx.ModelProto) -> int:
    """Rewrite every step of the running sum behind which another share of x0 is read, in place.

    Requires: nothing; a graph without such norms, or of no fixed length, stays as it is.
    Ensures: what reads the running sum itself still finds it.

    Returns:
        How many norms read the running sum now.
    """
    graph, shapes = Graph(model), Shapes(model)
    shares = _shares(graph, shapes)
    if not shares:
        return 0
    # Where tokens were left out (rows.py), the last norms read what is left of x0.
    ((root, _),) = Counter(taken[0].input[0] for taken in shares.values()).most_common(1)
    length, dim = (shapes.fixed(root, axis) for axis in (1, 2))
    if shapes.rank(root) != 3 or length is None or dim is None:
        return 0
    steps = _steps(graph, shapes, root, shares)
    if not any(step.taken for step in steps):
        return 0
    _apply(model, shapes, root, (length, dim), steps)
    return sum(bool(step.taken) for step in steps)


def _shares(graph: Graph, shapes: Shapes) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
    """By the running sum's name: the product with x0, and the difference, that a norm reads."""
    found = {}
    for node in shapes.nodes:
        share = graph.producers.get(node.input[1]) if len(node.input) == 2 else None
        if node.op_type != "Sub" or share is None or share.op_type != "Mul":
            continue
        factor = graph.value(share.input[1])
        read_by = [user.op_type for user in shapes.users[node.output[0]]]
        alone = len(shapes.users[share.output[0]]) == 1
        if factor is not None and factor.size == 1 and alone and read_by == ["LayerNormalization"]:
            found[node.input[0]] = (share, node)
    return found


def _steps(
    graph: Graph,
    shapes: Shapes,
    root: str,
    shares: dict[str, tuple[onnx.NodeProto, onnx.NodeProto]],
) -> list[Step]:
    """The steps from x0 on, each from the sum of the one before."""
    steps: list[Step] = []
    before = root
    for node in shapes.nodes:
        if node.op_type != "Sub" or node.input[0] != before:
            continue
        bias = graph.producers.get(node.input[1])
        product = None if bias is None else graph.producers.get(bias.input[0])
        if bias is None or product is None or not _is_linear(graph, shapes, product, bias):
            continue
        after = node.output[0]
        share = 0.0
        if after in shares:
            value = graph.value(shares[after][0].input[1])
            assert value is not None
            share = float(value.reshape(()))
        steps.append(Step(before, after, product, bias, share, shares.get(after, ())))
        before = after
    return steps


def _is_linear(graph: Graph, shapes: Shapes, product: onnx.NodeProto, bias: onnx.NodeProto) -> bool:
    if (product.op_type, bias.op_type) != ("MatMul", "Add"):
        return False
    weight = graph.value(product.input[1])
    constant = graph.value(bias.input[1])
    used_once = all(len(shapes.users[node.output[0]]) == 1 for node in (product, bias))
    return weight is not None and weight.ndim == 2 and constant is not None and used_once


def _apply(
    model: onnx.ModelProto, shapes: Shapes, root: str, sizes: tuple[int, int], steps: list[Step]
) -> None:
    length, dim = sizes
    constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        f"{root}.row": np.array([-1, dim]),
        f"{root}.token": np.array([-1, length, dim]),
    }
    rows = helper.make_node("Reshape", [root, f"{root}.row"], [f"{root}.rows"], f"{root}.rows")
    new: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    read = {root: root}
    share = 0.0
    stepped = {step.after for step in steps}
    for step in steps:
        growth, share = step.share - share, step.share
        # Without a share the sum is what it was, and keeps its name.
        name = step.after if share == 0 else f"{step.after}.shifted"
        branch = step.bias.output[0]
        if growth:
            depth = shapes.constants[step.product.input[1]].dims[0]
            constants[f"{branch}.row"] = np.array([-1, depth])
            new[step.product.output[0]] = _product_with(root, step, growth)
            branch = f"{branch}.shared"
            shared = onnx.NodeProto()
            shared.CopyFrom(step.bias)
            shared.input[0], shared.output[0] = f"{step.product.output[0]}.shared", branch
            new[step.bias.output[0]] = [shared]
        made = [helper.make_node("Sub", [read[step.before], branch], [name], name)]
        gone |= {node.output[0] for node in step.taken}
        inside = {node.output[0] for node in step.taken} | (stepped - {step.after})
        others = [user for user in shapes.users[step.after] if user.output[0] not in inside]
        if name != step.after and (others or step.after in shapes.outputs):
            part = f"{step.after}.share"
            constants[f"{part}.factor"] = np.array(share, dtype=np.float32)
            made.append(helper.make_node("Mul", [root, f"{part}.factor"], [part], part))
            made.append(helper.make_node("Add", [name, part], [step.after], step.after))
        new[step.after] = made
        read[step.after] = name
        if step.taken:
            read[step.taken[1].output[0]] = name
    kept = [] if root in shapes.made else [rows]
    for node in shapes.nodes:
        if node.output[0] in gone:
            continue
        if node.op_type == "LayerNormalization" and node.input[0] in read:
            node.input[0] = read[node.input[0]]
        kept += new.get(node.output[0], [node])
        if root in node.output:
            kept.append(rows)
    nodes = onnx.GraphProto(node=kept).node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )


def _product_with(root: str, step: Step, growth: float) -> list[onnx.NodeProto]:
    """Reshape, Gemm with x0 as C, and Reshape back."""
    base, branch = f"{step.product.output[0]}.shared", step.bias.output[0]
    tokens, weight = step.product.input
    made = [
        helper.make_node("Reshape", [tokens, f"{branch}.row"], [f"{base}.rows"], f"{base}.rows"),
        helper.make_node(
            "Gemm",
            [f"{base}.rows", weight, f"{root}.rows"],
            [f"{base}.product"],
            f"{base}.product",
            beta=growth,
        ),
        helper.make_node("Reshape", [f"{base}.product", f"{root}.token"], [base], base),
    ]
    for node in made:
        node.metadata_props.extend(step.product.metadata_props)
    return made
