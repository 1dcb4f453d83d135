"""The search for the first node of a graph whose output breaks its budget."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from bilateral_export.errors import UserError
from bilateral_export.graph.provenance import MODULE_KEY, SOURCE_KEY
from bilateral_export.graph.token_matrices import held_tensors, to_matrix
from bilateral_export.metadata import Precision
from bilateral_export.parity.bisection.oracle import Oracle
from bilateral_export.parity.bisection.windows import OpenRunner, Window, WindowedRun, extract
from bilateral_export.parity.measure import TIES
from bilateral_export.parity.report.document import NodeError
from bilateral_export.parity.scores import decided
from bilateral_export.precision import DTYPES
from bilateral_export.tensors import Array

# A correct runtime's error at a node is within a few per cent of eager PyTorch's (README.md).
NODE_FACTOR = 4.0

# A node, what it read without weights, and what it made.
Ran: TypeAlias = "tuple[onnx.NodeProto, dict[str, Array], dict[str, Array]]"


@dataclass(frozen=True)
class Culprit:
    """The first node that breaks its budget, with what is needed to run it alone.

    Attributes:
        at: The node and its error.
        before: Largest error among the values that the node reads.
        proto: The node.
        inputs: What it read, without weights.
        expected: What it should have made, by FP64, in the graph's type.
        got: What it made.
    """

    at: NodeError
    before: float
    proto: onnx.NodeProto
    inputs: dict[str, Array]
    expected: dict[str, Array]
    got: dict[str, Array]


@dataclass(frozen=True)
class NodeErrors:
    """The errors at the nodes of a graph.

    Attributes:
        nodes: The errors at the nodes that PyTorch has a value for, in graph order.
        culprit: The first that is broken, where one is.
        peak_bytes: Most bytes of the graph's values held at once.
    """

    nodes: tuple[NodeError, ...]
    culprit: Culprit | None
    peak_bytes: int


def bisect(
    model: onnx.ModelProto,
    open_runner: OpenRunner,
    inputs: Mapping[str, Array],
    reference: Oracle,
    eager: Oracle,
    precision: Precision,
    *,
    factor: float = NODE_FACTOR,
    to_the_end: bool = False,
    budgets: Mapping[str, float] | None = None,
) -> NodeErrors:
    """Return the errors at a graph's nodes, up to the first that is beyond its budget.

    A lowered file's matrices are compared with the tensors that they hold
    (`graph.token_matrices`).
    Between two values that PyTorch knows there may be nodes it does not (a linear layer is two
    nodes, one torch operation). Where the later value is broken and the earlier is not, the nodes
    between are compared with the traced graph, evaluated in float64.

    Args:
        model: The graph to judge, with weights.
        open_runner: The runtime to judge it on.
        inputs: The model's inputs.
        reference: The trained model in FP64.
        eager: The trained model in the graph's precision.
        precision: Of the graph.
        factor: Limit of each node, as a multiple of the eager error there.
        to_the_end: Whether to go on after the first broken node, to report every node's error.
        budgets: What the errors of the graph's outputs may be at least, by name: of a few numbers,
            eager PyTorch's error in one sample is luck.

    Raises:
        UserError: The runtime cannot run a part of the graph before any culprit.
    """
    run = WindowedRun(model, open_runner)
    held = held_tensors(model)
    last_use = {name: place for place, node in enumerate(model.graph.node) for name in node.input}
    done = 0
    known = reference.operations.keys() & eager.operations.keys()
    known |= {matrix for matrix, tensor in held.items() if tensor in known}
    eps = float(torch.finfo(DTYPES[precision]).eps)
    least = {**dict.fromkeys(decided(model.graph), factor * TIES), **(budgets or {})}
    errors: dict[str, NodeError] = {}
    culprit: Culprit | None = None
    pending: list[Ran] = []

    def windows() -> Iterator[Window]:
        try:
            yield from run.windows(inputs)
        except UserError:
            if culprit is None:  # behind a culprit nothing need run
                raise

    for window in windows():
        names = [name for name in window.outputs if name in known]
        truth = _values(reference, inputs, names, held)
        usual = _values(eager, inputs, names, held)
        for node in window.nodes:
            done += 1
            made = {name: window.outputs[name] for name in node.output if name}
            read = {name: _find(name, window) for name in node.input if _has(name, window)}
            pending.append((node, read, made))
            compared = [name for name in made if name in truth]
            for name in compared:
                usual_error = distance(usual[name], truth[name])
                limit = max(factor * max(usual_error, eps), least.get(name, 0.0))
                at = _error(node, distance(made[name], truth[name]), usual_error, limit)
                errors[name] = at
                if at.broken and culprit is None:
                    suspects = _suspects(pending)
                    truths = _evaluate(suspects[:-1], inputs, reference, held)
                    culprit = _blame(suspects, errors, truths | {name: truth[name]}, at)
            if compared:
                # What later nodes still read stays suspect: a Split feeds several of them.
                pending = [
                    (suspect, its_read, its_made)
                    for suspect, its_read, its_made in pending
                    if any(last_use.get(output, -1) >= done for output in its_made.keys() - known)
                ]
        if culprit is not None and not to_the_end:
            break
    return NodeErrors(tuple(errors.values()), culprit, run.peak_bytes)


def distance(got: Array, reference: Array) -> float:
    """Return the relative Euclidean distance of two tensors; infinite where one is not finite.

    NaN and infinity must be in the same places. Of integers and truth values it is the share that
    differs.
    """
    if got.shape != reference.shape:
        return float("inf")
    wide, true = np.asarray(got, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    finite = np.isfinite(true)
    alike = np.array_equal(np.where(finite, 0, true), np.where(finite, 0, wide), equal_nan=True)
    if not alike or not np.isfinite(wide[finite]).all():
        return float("inf")
    if reference.dtype.kind != "f":
        return float(np.mean(wide != true)) if wide.size else 0.0
    norm = float(np.linalg.norm(true[finite]))
    return float(np.linalg.norm(wide[finite] - true[finite])) / (norm or 1.0)


def _blame(
    suspects: Sequence[Ran],
    errors: Mapping[str, NodeError],
    truths: Mapping[str, Array],
    broken: NodeError,
) -> Culprit:
    """Return the first broken node among the suspects; at least the last, whose value is known."""
    for node, read, made in suspects:
        known = {name: distance(made[name], truths[name]) for name in made if name in truths}
        if not known:
            continue
        name, error = max(known.items(), key=lambda item: item[1])
        last = node is suspects[-1][0]
        if last or error > broken.limit:
            at = broken if last else _error(node, error, broken.eager_error, broken.limit)
            earlier = [errors[name].error for name in node.input if name in errors]
            return Culprit(
                at=at,
                before=max(earlier, default=0.0),
                proto=node,
                inputs=read,
                expected={name: truths[name].astype(made[name].dtype)},
                got=made,
            )
    raise AssertionError("the value of the last one is known")


def _suspects(pending: Sequence[Ran]) -> list[Ran]:
    """Return those that the last one depends on, and itself, in order."""
    last, _, _ = pending[-1]
    wanted, found = set(last.input), [pending[-1]]
    for ran in reversed(pending[:-1]):
        node, _, _ = ran
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(ran)
    return found[::-1]


def _values(
    oracle: Oracle,
    inputs: Mapping[str, Array],
    names: Collection[str],
    held: Mapping[str, str],
) -> dict[str, Array]:
    """Return an oracle's values by the graph's own names, as the graph has them."""
    tensors = {name: held.get(name, name) for name in names}
    values = oracle.values(inputs, set(tensors.values()))
    return {
        name: to_matrix(values[tensor]) if name in held else values[tensor]
        for name, tensor in tensors.items()
    }


def _evaluate(
    suspects: Sequence[Ran],
    inputs: Mapping[str, Array],
    reference: Oracle,
    held: Mapping[str, str],
) -> dict[str, Array]:
    """Return the traced graph's values at nodes that no torch operation stands for, in float64."""
    wanted = {held.get(name, name) for node, _, _ in suspects for name in node.output}
    graph = reference.graph.graph
    healthy: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input) - reference.operations.keys()
            healthy.insert(0, node)
    if not healthy:
        return {}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made = {name for node in healthy for name in node.output}
    read = {name for node in healthy for name in node.input if name} - made - weights.keys()
    if not read <= reference.operations.keys() | inputs.keys():
        return {}
    given = reference.values(inputs, read - inputs.keys())
    given |= {name: _widen(inputs[name]) for name in read & inputs.keys()}
    wide = {
        name: numpy_helper.from_array(_widen(numpy_helper.to_array(weights[name])), name)
        for name in {name for node in healthy for name in node.input} & weights.keys()
    }
    names = sorted(made)
    untyped = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
    model = extract(reference.graph, healthy, wide, given, untyped)
    values = dict(zip(names, ReferenceEvaluator(model).run(names, given), strict=True))
    as_matrices = {
        matrix: to_matrix(values[tensor]) for matrix, tensor in held.items() if tensor in values
    }
    return values | as_matrices


def _widen(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _error(node: onnx.NodeProto, error: float, eager_error: float, limit: float) -> NodeError:
    properties = {item.key: item.value for item in node.metadata_props}
    return NodeError(
        node=node.name,
        operator=node.op_type,
        module=properties.get(MODULE_KEY, ""),
        source=properties.get(SOURCE_KEY, ""),
        error=error,
        eager_error=eager_error,
        limit=limit,
    )


def _has(name: str, window: Window) -> bool:
    return name in window.inputs or name in window.outputs


def _find(name: str, window: Window) -> Array:
    return window.inputs[name] if name in window.inputs else window.outputs[name]
