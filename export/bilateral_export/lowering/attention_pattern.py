"""Pattern matching of an attention: one operator node with the projections around it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bilateral_export.graph.changes import read_metadata
from bilateral_export.lowering.subgraphs import names_read
from bilateral_export.op import contract
from bilateral_export.op.contract import RangeKernel, SpatialKernel

Values = NDArray[np.float64]
HEADS_LAST = [0, 2, 1, 3]


class PreconditionError(Exception):
    """A rewrite does not apply to a node; the message says why, for a person."""


@dataclass(frozen=True)
class AttentionPattern:
    """A self-attention whose tokens come from one linear layer and whose positions are constant.

    Attributes:
        node: The operator node.
        replaced: Every node that computes `merged` from `tokens`, `node` among them.
        tokens: Name of the linear layer's input `[B, N, dim]`.
        merged: Name of the attention's output with heads merged again, `[B, N, dim]`.
        weight: Of the linear layer, `[dim, 3 dim]`: queries, keys, values.
        bias: `[3 dim]`.
        heads: H.
        scale: Of the range kernel.
        range_kernel: Similarity of tokens.
        spatial_kernel: Similarity of positions.
        query_prefix: Leading queries without a position.
        key_prefix: The same for keys.
        positions: Of queries and keys: `[N, C]` each (gaussian) or `[H, N, P]` (dot), or None.
        bandwidth: `[H]`, for the Gaussian spatial kernel.
        computed: Name of the coordinates `[N, C]` of queries and keys, where the graph computes
            them; `positions` is then None.
        own_length: N at the model's own size, where the graph computes positions.
        longest: N at its largest, likewise.
    """

    node: onnx.NodeProto
    replaced: tuple[onnx.NodeProto, ...]
    tokens: str
    merged: str
    weight: Values
    bias: Values
    heads: int
    scale: float
    range_kernel: RangeKernel
    spatial_kernel: SpatialKernel
    query_prefix: int
    key_prefix: int
    positions: tuple[Values, Values] | None
    bandwidth: Values | None
    computed: str | None = None
    own_length: int | None = None
    longest: int | None = None

    @property
    def head_dim(self) -> int:
        """D."""
        return self.weight.shape[1] // 3 // self.heads

    @property
    def length(self) -> int | None:
        """N where positions fix it, N at the model's own size where it is known, else None."""
        return self.own_length if self.positions is None else self.positions[0].shape[-2]


class Graph:
    """Index of a graph: producers, uses and constants by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.producers = {name: node for node in graph.node for name in node.output}
        self.uses = Counter(name for node in graph.node for name in names_read(node))
        self.uses.update(value.name for value in graph.output)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def value(self, name: str) -> Values | None:
        """Return a constant's value in float64; None for what is computed."""
        if name in self._constants:
            return np.asarray(numpy_helper.to_array(self._constants[name]), dtype=np.float64)
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t), dtype=np.float64)
        return None

    def constant(self, name: str, what: str) -> Values:
        """Return a constant's value in float64.

        Raises:
            PreconditionError: It is computed in the graph; `what` is named.
        """
        value = self.value(name)
        if value is None:
            raise PreconditionError(f"{what} is not constant")
        return value

    def last_sizes(self, name: str, what: str) -> Values:
        """Return a shape's last two sizes; its first ones may be computed.

        Raises:
            PreconditionError: They are computed too; `what` is named.
        """
        node = self.producers.get(name)
        if node is None or node.op_type != "Concat":
            return self.constant(name, what)[-2:]
        return np.concatenate([self.constant(each, what) for each in node.input[-2:]])

    def is_float32(self, name: str) -> bool:
        """Return whether a constant is float32."""
        tensor = self._constants.get(name)
        return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT

    def made_by(self, name: str, operator: str, what: str) -> onnx.NodeProto:
        """Return the node that computes `name`, if it is of this operator."""
        node = self.producers.get(name)
        if node is None or node.op_type != operator or node.domain not in ("", "ai.onnx"):
            found = "an input" if node is None else node.op_type
            raise PreconditionError(f"{what} comes from {found}, not from {operator}")
        return node

    def used_by(self, name: str, operator: str, nodes: list[onnx.NodeProto]) -> onnx.NodeProto:
        """Return the only node that uses `name`, if it is of this operator."""
        users = [node for node in nodes if name in node.input]
        if len(users) != 1 or self.uses[name] != 1 or users[0].op_type != operator:
            raise PreconditionError(f"the attention's output does not go to one {operator}")
        return users[0]


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the operator's nodes, in graph order."""
    return [
        node
        for node in model.graph.node
        if node.domain == contract.DOMAIN and node.op_type == contract.OP_TYPE
    ]


def read_attention(model: onnx.ModelProto, graph: Graph, node: onnx.NodeProto) -> AttentionPattern:
    """Match one operator node and the nodes around it.

    Raises:
        PreconditionError: It is causal, has a key bias, moving positions or another element type
            than float32, or its tokens do not come from one linear layer.
    """
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    spatial = cast(SpatialKernel, attributes[contract.SPATIAL_KERNEL].decode())
    if attributes[contract.CAUSAL]:
        raise PreconditionError("it is causal")
    names = contract.input_names(spatial, key_bias=False)
    if len(node.input) != len(names):
        raise PreconditionError("it has a key bias")

    replaced = [node]
    flat = []
    for name, what in zip(node.input[:3], ("query", "key", "value"), strict=True):
        transpose = graph.made_by(name, "Transpose", what)
        if list(transpose.attribute[0].ints) != HEADS_LAST:
            raise PreconditionError(f"{what} is transposed in another way")
        reshape = graph.made_by(transpose.input[0], "Reshape", what)
        shape = graph.last_sizes(reshape.input[1], "the shape of heads")
        heads = int(shape[-2])
        replaced += [transpose, reshape]
        flat.append(reshape.input[0])
    split = graph.made_by(flat[0], "Split", "query")
    if list(split.output) != flat:
        raise PreconditionError("query, key and value do not come from one projection")
    add = graph.made_by(split.input[0], "Add", "the projection")
    matmul = graph.made_by(add.input[0], "MatMul", "the projection")
    replaced += [split, add, matmul]
    if not graph.is_float32(matmul.input[1]):
        raise PreconditionError("its weights are not float32")

    nodes = list(model.graph.node)
    back = graph.used_by(node.output[0], "Transpose", nodes)
    merge = graph.used_by(back.output[0], "Reshape", nodes)
    replaced += [back, merge]
    inside = {item.output[0] for item in replaced}
    hidden = {name for item in replaced for name in item.output} - {merge.output[0]}
    for user in nodes:
        if user.output[0] not in inside and hidden & set(user.input):
            raise PreconditionError(f"{user.name} uses what is between projection and attention")

    positions = bandwidth = computed = None
    if spatial == "gaussian" and graph.value(node.input[3]) is None:
        if node.input[3] != node.input[4]:
            raise PreconditionError("queries and keys have other positions")
        computed = node.input[3]
    elif spatial != "none":
        queries, keys = (graph.constant(name, "the positions") for name in node.input[3:5])
        positions = (queries, keys)
    if spatial == "gaussian":
        bandwidth = graph.constant(node.input[5], "the bandwidth")
    own_length, longest = _lengths(model, int(attributes[contract.KEY_PREFIX]))
    return AttentionPattern(
        node=node,
        replaced=tuple(replaced),
        tokens=matmul.input[0],
        merged=merge.output[0],
        weight=graph.constant(matmul.input[1], "the projection's weight"),
        bias=graph.constant(add.input[1], "the projection's bias"),
        heads=heads,
        scale=float(attributes[contract.SCALE]),
        range_kernel=cast(RangeKernel, attributes[contract.RANGE_KERNEL].decode()),
        spatial_kernel=spatial,
        query_prefix=int(attributes[contract.QUERY_PREFIX]),
        key_prefix=int(attributes[contract.KEY_PREFIX]),
        positions=positions,
        bandwidth=bandwidth,
        computed=computed,
        own_length=own_length if computed else None,
        longest=longest if computed else None,
    )


def _lengths(model: onnx.ModelProto, prefix: int) -> tuple[int | None, int | None]:
    """Return N at a model's own size and at its largest, for a model of several sizes."""
    about = read_metadata(model)
    if about is None or not about.image_sizes:
        return None, None
    patch = about.model["patch_size"]
    (_, height, tall), (_, width, wide) = about.image_sizes.values()
    own, most = (
        rows // patch * (columns // patch) for rows, columns in ((height, width), (tall, wide))
    )
    return prefix + own, prefix + most
