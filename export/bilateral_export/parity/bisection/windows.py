"""Windowed execution of a graph: a few nodes at a time, every value between them exposed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from bilateral_export.errors import UserError
from bilateral_export.runners.base import Runner
from bilateral_export.tensors import Array

OpenRunner = Callable[[Path], Runner]

# What the exposed values of one window may take, and how many nodes it has at most.
WINDOW_BYTES = 64 << 20
WINDOW_NODES = 32


@dataclass
class Window:
    """Consecutive nodes that have run.

    Attributes:
        nodes: The nodes.
        inputs: What they read from before the window.
        outputs: Every value they made.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass
class WindowedRun:
    """Runs a graph window after window, keeping only what later nodes still read.

    Memory is that of one window's values and of the live values between windows: the window
    shrinks so that the former stay within `limit_bytes`, going by the window before it (the first
    has four nodes).

    Attributes:
        model: The graph, with weights.
        open_runner: How a runtime opens a file.
        limit_bytes: See above.
        peak_bytes: The most that was held, once the run is over.
    """

    model: onnx.ModelProto
    open_runner: OpenRunner
    limit_bytes: int = WINDOW_BYTES
    peak_bytes: int = field(default=0, init=False)

    def windows(self, inputs: Mapping[str, Array]) -> Iterator[Window]:
        """Yield the windows from the inputs on; the run stops with the iteration.

        Raises:
            UserError: The runtime cannot run one of the nodes.
        """
        nodes = list(self.model.graph.node)
        weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        types = inferred_types(self.model)
        last_use = {name: number for number, node in enumerate(nodes) for name in node.input}
        live: dict[str, Array] = dict(inputs)
        start, size = 0, 4
        while start < len(nodes):
            piece = nodes[start : start + size]
            read = _read(piece)
            given = {name: live[name] for name in read if name not in weights}
            # ONNX Runtime finds a type by itself where shape inference does not.
            outputs = [
                types.get(name) or helper.make_empty_tensor_value_info(name)
                for node in piece
                for name in node.output
                if name
            ]
            try:
                made = self._run(piece, weights, given, outputs)
            except UserError:
                # What comes before the node that cannot run is worth a look: it may be the cause.
                if len(piece) == 1:
                    raise
                size = len(piece) // 2
                continue
            window_bytes = sum(array.nbytes for array in made.values())
            held = window_bytes + sum(array.nbytes for array in live.values())
            self.peak_bytes = max(self.peak_bytes, held)
            yield Window(tuple(piece), given, made)
            start += len(piece)
            live = {
                name: array
                for name, array in (live | made).items()
                if last_use.get(name, -1) >= start
            }
            per_node = max(1, window_bytes // len(piece))
            size = max(1, min(WINDOW_NODES, self.limit_bytes // per_node))

    def _run(
        self,
        nodes: Sequence[onnx.NodeProto],
        weights: Mapping[str, onnx.TensorProto],
        given: Mapping[str, Array],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> dict[str, Array]:
        model = extract(self.model, nodes, weights, given, outputs)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "window.onnx"
            onnx.save(model, path)
            with self.open_runner(path) as runner:
                return runner.run(given)


def extract(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, onnx.TensorProto],
    given: Mapping[str, Array],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return a model of a few nodes.

    Args:
        model: What they are from; its functions and versions are kept.
        nodes: The nodes, in topological order.
        weights: The model's initializers by name.
        given: What the nodes read and neither make nor have as weights.
        outputs: The values to return.
    """
    graph = helper.make_graph(
        list(nodes),
        "window",
        [array_type(name, array) for name, array in given.items()],
        list(outputs),
        [weights[name] for name in _read(nodes) if name in weights],
    )
    return helper.make_model(
        graph,
        functions=list(model.functions),
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )


def inferred_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the types of the values that nodes make, as far as shape inference finds them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value for value in [*graph.value_info, *graph.output]}


def array_type(name: str, array: Array) -> onnx.ValueInfoProto:
    """Return the type of an array, as a value of the graph."""
    kind = helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)


def _read(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Return what nodes read and do not make themselves, each once, in order."""
    made = {name for node in nodes for name in node.output}
    names = (name for node in nodes for name in node.input if name and name not in made)
    return list(dict.fromkeys(names))
