"""The residual stream as one running sum, without the products of its coefficients.

A generalized residual connection, x' = a x + b f(c x + d x0) + e x0, takes four products and three
sums over `[B, N, dim]`. Written out, every x is a linear combination of x0 and of the branches
f_0, f_1, ... before it, and what reads it is a LayerNormalization, which ignores a factor of its
input (but for epsilon). So one sum y = x0 + w_0 f_0 + w_1 f_1 + ... is enough: norm k reads
y + g_k x0, w_i goes into the linear layer that ends branch i, and the norm's epsilon is divided by
the square of the factor. A standard residual connection is the case w = 1, g = 0.

The sums are written as differences of negated branches. ONNX Runtime would fuse a sum and the norm
behind it into SkipLayerNormalization, which takes several times as long on its CPU provider as the
two operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bilateral_export.lowering.attention_pattern import Graph, PreconditionError, Values

Combination = dict[str, float]
# A factor of x0 below this is rounding of the coefficients, which are float32.
_NEGLIGIBLE = 1e-6
_EPSILON = 1e-5  # ONNX's default


@dataclass(frozen=True)
class Branch:
    """A linear layer whose output is added to the stream.

    Attributes:
        name: Its output.
        tokens: Its input, `[B, N, K]`.
        weight: `[K, dim]`.
        bias: `[dim]`.
    """

    name: str
    tokens: str
    weight: Values
    bias: Values


@dataclass(frozen=True)
class Norm:
    """A LayerNormalization that reads the stream.

    Attributes:
        name: Its output.
        combination: Its input, as factors of x0 and branches.
        scale: `[dim]`.
        bias: `[dim]`.
        epsilon: Added to the variance.
    """

    name: str
    combination: Combination
    scale: Values
    bias: Values
    epsilon: float


@dataclass(frozen=True)
class ResidualStream:
    """A model's residual stream, as it was before the rewrite.

    Attributes:
        root: Name of x0, `[B, N, dim]`.
        branches: In order, by the name of their output.
        norms: In order.
        replaced: First outputs of the nodes that compute the combinations.
    """

    root: str
    branches: dict[str, Branch]
    norms: tuple[Norm, ...]
    replaced: frozenset[str]


def read_residual_stream(model: onnx.ModelProto) -> ResidualStream:
    """Read the sums between a model's norms.

    Raises:
        PreconditionError: There is none, something else than a norm reads it, a branch does not end
            in a linear layer of float32, or the combinations are not multiples of one running sum.
    """
    graph = Graph(model)
    all_norms = [n for n in model.graph.node if n.op_type == "LayerNormalization" and not n.domain]
    reader = _Reader(graph, [_root(graph, node.input[0]) for node in all_norms[:1]])
    norms: list[Norm] = []
    for node in all_norms:
        combination = reader.combination(node.input[0])
        if norms and not set(norms[0].combination) <= set(combination):
            continue  # of something else, such as a head
        norms.append(_norm(graph, node, combination))
    if len(norms) < 2 or len(norms[0].combination) != 1:
        raise PreconditionError("no residual stream begins at the first norm")
    (root,) = norms[0].combination
    added = set(norms[-1].combination) - {root}
    names = [node.output[0] for node in model.graph.node if node.output[0] in added]
    branches = {name: _branch(graph, name) for name in names}
    stream = ResidualStream(root, branches, tuple(norms), frozenset(reader.replaced))
    _check_uses(model, stream)
    _factors(stream)
    return stream


def rewrite_residual_stream(model: onnx.ModelProto) -> int:
    """Replace the linear combinations with the running sum, in place.

    Ensures: one subtraction a branch, and one product and subtraction more for a norm that reads
    another multiple of x0; weights that other nodes use too are not changed.

    Returns:
        How many norms read the running sum now.

    Raises:
        PreconditionError: See `read_residual_stream`.
    """
    stream = read_residual_stream(model)
    weights, factors = _factors(stream)
    producers = {name: node for node in model.graph.node for name in node.output}
    new: dict[str, list[onnx.NodeProto]] = {}
    constants: dict[str, NDArray[np.generic]] = {}
    running, done = stream.root, 0
    order = list(stream.branches)
    for norm, factor in zip(stream.norms, factors, strict=True):
        made = []
        while done < len(order) and order[done] in norm.combination:
            name = order[done]
            inputs, output = [running, f"{name}.weighted"], f"{name}.sum"
            made.append(helper.make_node("Sub", inputs, [output], output))
            running, done = output, done + 1
        source = running
        extra = norm.combination[stream.root] / factor - 1
        if abs(extra) > _NEGLIGIBLE:
            share = f"{norm.name}.share"
            constants[share] = np.array(-extra)
            made.append(
                helper.make_node("Mul", [stream.root, share], [f"{share}.of"], f"{share}.of")
            )
            source = f"{norm.name}.source"
            made.append(helper.make_node("Sub", [running, f"{share}.of"], [source], source))
        new[norm.name] = made
        node = producers[norm.name]
        node.input[0] = source
        if factor < 0:
            node.input[1] = f"{norm.name}.scale"
            constants[node.input[1]] = -norm.scale
        _set_epsilon(node, norm.epsilon / factor**2)
    for branch in stream.branches.values():
        add = producers[branch.name]
        product = next(name for name in add.input if name in producers)
        weight, bias = f"{branch.name}.weight", f"{branch.name}.bias"
        producers[product].input[1] = weight
        # Other values than before get other names: parity compares what kept its own.
        producers[product].output[0] = f"{product}.weighted"
        add.input[:] = [f"{product}.weighted", bias]
        add.output[0] = f"{branch.name}.weighted"
        constants[weight] = -weights[branch.name] * branch.weight
        constants[bias] = -weights[branch.name] * branch.bias
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        kept += new.get(node.output[0], [])
        if node.output[0] not in stream.replaced:
            kept.append(node)
    nodes = onnx.GraphProto(node=kept).node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, dtype=np.float32), name)
        for name, value in constants.items()
    )
    return len(stream.norms)


def _root(graph: Graph, name: str) -> str:
    """Return the tensor that one is a multiple of, x0 itself where it is c x0 + d x0."""
    node = graph.producers.get(name)
    if node is None or node.domain or node.op_type not in ("Add", "Mul"):
        return name
    constants = [value for value in map(graph.value, node.input) if value is not None]
    dynamic = [entry for entry in node.input if graph.value(entry) is None]
    if node.op_type == "Mul" and [value.size for value in constants] == [1]:
        return _root(graph, dynamic[0])
    below = {_root(graph, entry) for entry in dynamic}
    return below.pop() if node.op_type == "Add" and not constants and len(below) == 1 else name


class _Reader:
    """Writes tensors as linear combinations of tensors that are not, and of those given."""

    def __init__(self, graph: Graph, atoms: Sequence[str]) -> None:
        self._graph = graph
        self._known: dict[str, Combination] = {name: {name: 1.0} for name in atoms}
        self.replaced: set[str] = set()

    def combination(self, name: str) -> Combination:
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    def _read(self, name: str) -> Combination:
        node = self._graph.producers.get(name)
        if node is None or node.domain or node.op_type not in ("Add", "Mul"):
            return {name: 1.0}
        constants = [self._graph.value(entry) for entry in node.input]
        dynamic = [
            entry for entry, value in zip(node.input, constants, strict=True) if value is None
        ]
        if node.op_type == "Add" and len(dynamic) == 2:
            total: Counter[str] = Counter()
            for entry in dynamic:
                for atom, factor in self.combination(entry).items():
                    total[atom] += factor  # type: ignore[assignment]
            self.replaced.add(name)
            return dict(total)
        if node.op_type == "Mul" and len(dynamic) == 1:
            factor_of = next(value for value in constants if value is not None)
            if factor_of.size == 1:
                self.replaced.add(name)
                scalar = float(factor_of.reshape(()))
                return {a: scalar * f for a, f in self.combination(dynamic[0]).items()}
        return {name: 1.0}


def _norm(graph: Graph, node: onnx.NodeProto, combination: Combination) -> Norm:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("axis", -1) != -1 or len(node.output) != 1 or len(node.input) != 3:
        raise PreconditionError(f"{node.name} is another norm than over the last axis")
    if not graph.is_float32(node.input[1]):
        raise PreconditionError("its weights are not float32")
    return Norm(
        name=node.output[0],
        combination=combination,
        scale=graph.constant(node.input[1], "a norm's scale"),
        bias=graph.constant(node.input[2], "a norm's bias"),
        epsilon=float(attributes.get("epsilon", _EPSILON)),
    )


def _branch(graph: Graph, name: str) -> Branch:
    add = graph.made_by(name, "Add", "a branch")
    values = [graph.value(entry) for entry in add.input]
    bias = next((value for value in values if value is not None), None)
    product = next((e for e, v in zip(add.input, values, strict=True) if v is None), "")
    if bias is None or bias.ndim != 1 or graph.uses[product] != 1:
        raise PreconditionError("a branch does not end in a linear layer")
    matmul = graph.made_by(product, "MatMul", "a branch")
    return Branch(name, matmul.input[0], graph.constant(matmul.input[1], "a weight"), bias)


def _check_uses(model: onnx.ModelProto, stream: ResidualStream) -> None:
    """Raise unless only norms read the stream, and only the stream reads a branch."""
    inside = stream.replaced | set(stream.branches)
    readers = stream.replaced | {norm.name for norm in stream.norms}
    for node in model.graph.node:
        read = inside & set(node.input)
        if read and node.output[0] not in readers:
            raise PreconditionError(f"{node.name} reads the residual stream")
    if inside & {value.name for value in model.graph.output}:
        raise PreconditionError("the residual stream is an output")


def _factors(stream: ResidualStream) -> tuple[dict[str, float], list[float]]:
    """Return the branches' weights w, and each norm's input as a multiple of what it reads.

    Raises:
        PreconditionError: No such numbers exist.
    """
    weights: dict[str, float] = {}
    factors = []
    for norm in stream.norms:
        of_root = norm.combination.get(stream.root, 0.0)
        branches = {n: f for n, f in norm.combination.items() if n != stream.root}
        # The first norm behind a branch reads y itself; that sets the scale of the others.
        known = next(iter(weights), None)
        factor = of_root if known is None else branches.get(known, 0.0) / weights[known]
        if factor == 0 or not np.isfinite(factor):
            raise PreconditionError("a norm reads nothing of the stream's beginning")
        missing = set(weights) - set(branches)
        if missing or any(
            not np.isclose(branches[name], factor * weight, rtol=1e-6)
            for name, weight in weights.items()
        ):
            raise PreconditionError("the norms do not read multiples of one running sum")
        for name in stream.branches:
            if name in branches and name not in weights:
                weights[name] = branches[name] / factor
        factors.append(factor)
    if any(weight == 0 or not np.isfinite(weight) for weight in weights.values()):
        raise PreconditionError("a branch does not count")
    return weights, factors


def _set_epsilon(node: onnx.NodeProto, epsilon: float) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("epsilon", float(epsilon))])
