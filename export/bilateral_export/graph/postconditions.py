"""Postconditions of an exported file, checked in a process that does not know the operator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx

import bilateral_export
from bilateral_export.artifact import load_graph
from bilateral_export.op import contract

TRAINING_OPERATORS = frozenset({"Dropout", "BatchNormalization", "SoftmaxCrossEntropyLoss"})


class PostconditionError(Exception):
    """An exported file is not what the exporter promises: a defect of this package."""


def check_exported(path: Path, attention_nodes: int) -> None:
    """Check an exported file, in a fresh process so that no registered schema hides a fault.

    Args:
        path: The ONNX file; its external data, if any, beside it.
        attention_nodes: How many attention nodes the model has.

    Raises:
        PostconditionError: What does not hold.
    """
    command = [sys.executable, "-m", __name__, str(path), str(attention_nodes)]
    # The child finds this package where this process did, installed or not.
    path_of_package = str(Path(bilateral_export.__file__).parents[1])
    search = os.pathsep.join(filter(None, [path_of_package, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["the checker died"]
        raise PostconditionError(f"{path.name}: {reason[0]}")


def violations(path: Path, attention_nodes: int) -> list[str]:
    """List what does not hold of an exported file; empty when all is well."""
    found = []
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        found.append(f"onnx.checker: {error}")
    model = load_graph(path, weights=False)
    calls = [node for node in model.graph.node if node.domain == contract.DOMAIN]
    if len(calls) != attention_nodes:
        found.append(f"{len(calls)} attention nodes, expected {attention_nodes}")
    functions = {(f.domain, f.name, f.overload) for f in model.functions}
    for node in calls:
        if (node.domain, node.op_type, node.overload) not in functions:
            found.append(f"node {node.name} has no function body")
        if contract.PLUGIN_NAMESPACE not in {attribute.name for attribute in node.attribute}:
            found.append(f"node {node.name} has no plugin attributes")
    nodes = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    for node in nodes:
        if node.op_type in TRAINING_OPERATORS:
            found.append(f"node {node.name} is a training operator {node.op_type}")
    found += [f"{name} is float64" for name in _float64_names(model)]
    return found


def _float64_names(model: onnx.ModelProto) -> list[str]:
    double = onnx.TensorProto.DOUBLE
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    names = [value.name for value in values if value.type.tensor_type.elem_type == double]
    names += [tensor.name for tensor in graph.initializer if tensor.data_type == double]
    nodes = [*graph.node, *(node for f in model.functions for node in f.node)]
    for node in nodes:
        for attribute in node.attribute:
            is_cast = node.op_type == "Cast" and attribute.name == "to" and attribute.i == double
            if is_cast or attribute.t.data_type == double:
                names.append(node.name or node.output[0])
    return names


if __name__ == "__main__":
    problems = violations(Path(sys.argv[1]), int(sys.argv[2]))
    if problems:
        sys.exit("; ".join(" ".join(problem.split()) for problem in problems))
