"""Names of nodes: the torch module and the source line that each came from."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bilateral_export.models.user_code import relative
from bilateral_export.op import contract

if TYPE_CHECKING:  # who only reads a file's names needs no torch
    import onnx_ir as ir

    from bilateral_export.models.family import Family

MODULE_KEY = "bilateral.module"
SOURCE_KEY = "bilateral.source"

_SCOPES = "pkg.torch.onnx.name_scopes"
_STACK = "pkg.torch.onnx.stack_trace"
_OWN_FRAME = re.compile(r'File "[^"]*?(bilateral_export/[^"]+)", line (\d+)')
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def name_nodes(model: ir.Model, traced: Family) -> None:
    """Rename nodes and their values after the torch modules they come from, in place.

    A node gets the name `<module path>/<operator>` (numbered where a module has several), its
    first output the same name, and two metadata properties: the module path and the source line
    relative to this package, or to the directory of a user's model. What else the exporter
    recorded, absolute paths among it, is dropped.

    Args:
        model: The graph.
        traced: The torch model it was traced from.

    Ensures: node names are unique; the graph's inputs and outputs keep their names.
    """
    outputs = {value.name for value in model.graph.outputs}
    directory = traced.source_directory
    provenance = {
        node: (_module_path(node, traced.scope), _source_line(node, directory))
        for node in model.graph
    }
    seen: Counter[str] = Counter()
    for node, (module, source) in provenance.items():
        stem = f"{module or 'model'}/{node.op_type}"
        seen[stem] += 1
        node.name = stem if seen[stem] == 1 else f"{stem}_{seen[stem]}"
        for number, value in enumerate(node.outputs):
            if value.name not in outputs:
                value.name = f"{node.name}:{number}" if number else node.name
            value.metadata_props.clear()
        node.metadata_props.clear()
        node.metadata_props[MODULE_KEY] = module
        if source:
            node.metadata_props[SOURCE_KEY] = source


def name_constants(model: ir.Model, traced: Family) -> None:
    """Rename the constants the exporter computed after the first node that uses them, in place.

    Requires: nodes have their final names.

    Args:
        model: The graph.
        traced: The torch model it was traced from; names of its parameters and buffers stay.
    """
    parameters = {name for name, _ in [*traced.named_parameters(), *traced.named_buffers()]}
    for value in list(model.graph.initializers.values()):
        uses = list(value.uses())
        if value.name in parameters:
            value.name = value.name.removeprefix(traced.scope)
            continue
        if not uses:
            continue
        node, position = uses[0]
        module = node.metadata_props.get(MODULE_KEY) or "model"
        name = f"{node.name}.{position}"
        if node.domain == contract.DOMAIN:
            spatial_kernel = node.attributes[contract.SPATIAL_KERNEL].as_string()
            assert spatial_kernel in contract.SPATIAL_KERNELS
            name = f"{module}.{contract.input_names(spatial_kernel, key_bias=True)[position]}"
        elif node.op_type == "MatMul" and position == 1:
            name = f"{module}.weight_transposed"
        if name not in model.graph.initializers:
            value.name = name


def _module_path(node: ir.Node, scope: str) -> str:
    """Return the module a node was traced in, or its first user's where the exporter made it."""
    path: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    path = [scope for scope in path if not scope.startswith("_empty")]
    if path:
        module = path[-2] if len(path) > 1 else ""  # the last scope is the operator itself
        return "" if f"{module}." == scope else module.removeprefix(scope)
    users = [user for output in node.outputs for user, _ in output.uses()]
    return _module_path(users[0], scope) if users else ""


def _source_line(node: ir.Node, directory: Path | None) -> str:
    stack = node.metadata_props.get(_STACK, "")
    if directory is not None:
        for file, line in reversed(_FRAME.findall(stack)):
            if place := relative(file, directory):
                return f"{place}:{line}"
    frames = _OWN_FRAME.findall(stack)
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
