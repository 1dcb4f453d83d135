"""Edits of an ONNX graph: replacing an attention's nodes, dropping what is unused."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bilateral_export.lowering.attention_pattern import AttentionPattern
from bilateral_export.lowering.subgraphs import names_read


class Rewriter:
    """Replaces one attention; new names begin with the operator node's.

    Args:
        model: The model to change, in place, when `finish` is called.
        pattern: The attention to replace.
    """

    def __init__(self, model: onnx.ModelProto, pattern: AttentionPattern) -> None:
        self._model = model
        self._pattern = pattern
        self._prefix = pattern.node.name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def scoped(self, name: str) -> Rewriter:
        """Return a rewriter of the same graph whose new names begin with one more part."""
        made = copy.copy(self)
        made._prefix = self.name(name)
        return made

    def branch(self, name: str) -> Rewriter:
        """Return a rewriter whose nodes make a subgraph; its constants are the model's."""
        made = self.scoped(name)
        made._nodes = []
        return made

    def graph(
        self, outputs: Mapping[str, int], inputs: Mapping[str, int] | None = None
    ) -> onnx.GraphProto:
        """Return the nodes as a subgraph, given its outputs and scalar inputs with their types."""
        value = helper.make_tensor_value_info
        scalars = [value(name, of, []) for name, of in (inputs or {}).items()]
        made = [value(name, of, None) for name, of in outputs.items()]
        return helper.make_graph(self._nodes, self._prefix, scalars, made)

    def name(self, name: str) -> str:
        """Return a new tensor's full name."""
        return f"{self._prefix}.{name}"

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant and return its name; float64 becomes float32."""
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        full = self.name(name)
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), full))
        return full

    def shape(self, name: str, sizes: Sequence[int]) -> str:
        """Add a shape for Reshape and return its name; 0 keeps an axis."""
        return self.constant(name, np.array(sizes, dtype=np.int64))

    def node(
        self,
        operator: str,
        inputs: Sequence[str | NDArray[np.generic]],
        name: str,
        *,
        outputs: Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node and return the name of its first output; arrays become constants."""
        full = self.name(name)
        names = list(outputs or [full])
        given = [
            entry if isinstance(entry, str) else self.constant(f"{name}.{position}", entry)
            for position, entry in enumerate(inputs)
        ]
        made = helper.make_node(operator, given, names, name=full, domain=domain, **attributes)
        # Module and source line stay known, so that parity can name them.
        made.metadata_props.extend(self._pattern.node.metadata_props)
        self._nodes.append(made)
        return names[0]

    def projected(
        self,
        weight: NDArray[np.float64],
        bias_name: str,
        bias: NDArray[np.float64],
        sizes: Sequence[int],
    ) -> list[str]:
        """Add the projection of the tokens and return the names of queries, keys and values."""
        return self.projected_with(weight, self.constant(bias_name, bias), sizes)

    def projected_with(
        self, weight: NDArray[np.float64], bias: str, sizes: Sequence[int]
    ) -> list[str]:
        """Do the same with a bias that the graph has already."""
        inputs = [self._pattern.tokens, self.constant("weight", weight)]
        product = self.node("MatMul", inputs, "product")
        total = self.node("Add", [product, bias], "projected")
        parts = [self.name(f"part.{number}") for number in range(3)]
        self.node("Split", [total, self.shape("sizes", sizes)], "split", outputs=parts, axis=2)
        return parts

    def finish(self) -> None:
        """Replace the attention's nodes; new ones stand where the operator node stood."""
        # A node is identified by its first output, which is unique; objects may be copies.
        gone = {node.output[0] for node in self._pattern.replaced}
        kept: list[onnx.NodeProto] = []
        for node in list(self._model.graph.node):
            if node.output[0] == self._pattern.node.output[0]:
                kept += self._nodes
            elif node.output[0] not in gone:
                kept.append(node)
        graph = onnx.GraphProto(node=kept)
        del self._model.graph.node[:]
        self._model.graph.node.extend(graph.node)
        self._model.graph.initializer.extend(self._constants)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants and functions that nothing refers to, and constants twice, in place."""
    graph = model.graph
    used = {name for node in graph.node for name in names_read(node)}
    used |= {value.name for value in graph.output}
    # By name: a rewriter adds a constant wherever it is used, and a checker wants it once.
    kept = {tensor.name: tensor for tensor in graph.initializer if tensor.name in used}
    del graph.initializer[:]
    graph.initializer.extend(kept.values())
    calls = {(node.domain, node.op_type, node.overload) for node in graph.node}
    functions = [f for f in model.functions if (f.domain, f.name, f.overload) in calls]
    del model.functions[:]
    model.functions.extend(functions)
    domains = {node.domain for node in graph.node} | {""}
    imports = [entry for entry in model.opset_import if entry.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a deep copy of a model."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made
