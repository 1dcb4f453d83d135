"""Reference values from PyTorch at each node of the graph, by the node's own name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx

from bilateral_export.graph.attach import attach_functions
from bilateral_export.graph.export import trace_onnx
from bilateral_export.graph.provenance import name_constants, name_nodes
from bilateral_export.models.family import Family
from bilateral_export.tensors import Array, TensorSpec

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Trace:
    """A model traced anew, so that every ONNX value has the torch operation it came from.

    Args:
        model: The trained model; its dtype decides the precision of the trace.

    Attributes:
        graph: The translated graph, named as the exporter names it.
        operations: The torch operation that makes each ONNX value, where one does, by name.
        module: The traced program.
        inputs: What it takes, in order.
    """

    def __init__(self, model: Family) -> None:
        program = trace_onnx(model)
        exported = program.exported_program
        assert exported is not None
        graph = program.model
        # Sizes are whole numbers in PyTorch, not tensors.
        known = {n.name for n in exported.graph.nodes if isinstance(n.meta.get("val"), Tensor)}
        traced = [(value, value.name) for node in graph.graph for value in node.outputs]
        attach_functions(graph)
        name_nodes(graph, model)
        name_constants(graph, model)
        self.graph: onnx.ModelProto = ir.serde.serialize_model(graph)
        self.operations: dict[str, str] = {}
        for value, name in traced:
            if value.name and name and name in known:
                self.operations[value.name] = name
        # The exporter renames what the graph returns.
        results: Any = exported.graph.output_node().args[0]
        for value, result in zip(graph.graph.outputs, results, strict=True):
            assert value.name is not None
            self.operations[value.name] = result.name
        self.module: fx.GraphModule = exported.module()
        self.inputs: tuple[TensorSpec, ...] = model.inputs()


class Oracle:
    """The values at a traced model's nodes.

    The program is interpreted operation by operation; values that nobody asked for are freed as
    soon as their last user has run.

    Args:
        trace: The model.
        widened: Whether to interpret in float64, which is the reference: weights are widened, and
            conversions to narrower types become conversions to float64.
    """

    def __init__(self, trace: Trace, widened: bool) -> None:
        self.graph = trace.graph
        self.operations = trace.operations
        self._inputs = trace.inputs
        self._module = _double(trace.module) if widened else trace.module
        self._widened = widened

    def values(self, arrays: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
        """Return what the model computes at the named ONNX values, in float64 where it is floating.

        Args:
            arrays: The model's inputs.
            names: Keys of `operations`.
        """
        tensors = [torch.from_numpy(arrays[spec.name].copy()) for spec in self._inputs]
        if self._widened:
            tensors = [t.double() if t.is_floating_point() else t for t in tensors]
        wanted = {self.operations[name] for name in names}
        interpreter = _Recording(self._module, wanted, self._widened)
        with torch.inference_mode():
            interpreter.run(*tensors)
        return {name: interpreter.recorded[self.operations[name]] for name in names}


def _double(module: fx.GraphModule) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, on its pytrees
        return copy.deepcopy(module).double()


class _Recording(fx.Interpreter):
    """Interprets a traced program and keeps a few of its values."""

    def __init__(self, module: fx.GraphModule, wanted: Collection[str], widened: bool) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.widened = widened
        self.recorded: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted and isinstance(result, Tensor):
            wide = result.double() if result.is_floating_point() else result
            self.recorded[n.name] = wide.numpy().copy()
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self.widened:
            args = tuple(_wider(argument) for argument in args)
            kwargs = {name: _wider(argument) for name, argument in kwargs.items()}
        return super().call_function(target, args, kwargs)


def _wider(argument: Any) -> Any:
    narrow = isinstance(argument, torch.dtype) and argument in _NARROW
    return torch.float64 if narrow else argument
