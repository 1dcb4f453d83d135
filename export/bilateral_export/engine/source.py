"""A model made ready for the parser, with what its metadata says."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from bilateral_export.engine.attention_path import name_attention_nodes, use_function_bodies
from bilateral_export.engine.installation.plugin import find_plugin, require_plugin
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.profiles import Shape
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.metadata import METADATA_KEY


@dataclass(frozen=True)
class Source:
    """A model made ready for the parser.

    Attributes:
        path: Its file.
        model: The graph to parse; its external data lies beside `path`.
        attention_nodes: Names of its attention nodes.
        metadata: What `bilateral export` wrote into it.
        plugin: The library that runs attention; None where the function bodies do.
    """

    path: Path
    model: onnx.ModelProto = field(repr=False)
    attention_nodes: tuple[str, ...]
    metadata: dict[str, Any] | None
    plugin: Path | None


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model's graph; its weights may lie in files beside it.

    Raises:
        UserError: The file is no model, or lacks a file of its weights.
    """
    require_file(path, "model")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises DecodeError, onnx its own
        raise UserError(
            f"{path} is not an ONNX file", "Write it with `bilateral export`."
        ) from error
    if not model.graph.node:
        raise UserError(f"{path} holds no graph", "Write it with `bilateral export`.")
    for file in weight_files(path, model):
        require_file(file, f"the weights file of {path.name},")
    return model


def read_source(path: Path, options: BuildOptions) -> Source:
    """Read a model and decide what runs its attention.

    Raises:
        UserError: The file is no model, lacks its weights, or the plugin that was asked for is not
            there.
    """
    model = read_model(path)
    names = name_attention_nodes(model)
    plugin = _choose_plugin(bool(names), options)
    if plugin is None:
        use_function_bodies(model)
    return Source(path, model, names, described(model), plugin)


def weight_files(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    """The files beside `path` that hold weights of its graph (ONNX external data)."""
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / location for location in sorted(locations))


def _choose_plugin(has_attention: bool, options: BuildOptions) -> Path | None:
    if options.attention == "function" or not has_attention:
        return None
    if options.attention == "plugin" or options.plugin is not None or options.embed_plugin:
        return require_plugin(options.plugin)
    return find_plugin()


def described(model: onnx.ModelProto) -> dict[str, Any] | None:
    """What `bilateral export` wrote into a model about it; None where that is not there."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            with contextlib.suppress(json.JSONDecodeError):
                document = json.loads(entry.value)
                return document if isinstance(document, dict) else None
    return None


def dimension_sizes(
    source: Source, shapes: dict[str, Shape]
) -> dict[tuple[str, int], tuple[int, int]]:
    """The sizes of each dynamic dimension after the first, where the metadata tells.

    A sequence is as long as the model's configuration says; one that counts what is cached may be
    empty.
    """
    model = (source.metadata or {}).get("model")
    if not isinstance(model, dict):
        return {}
    length = model.get("length") or model.get("context")
    if not isinstance(length, int):
        return {}
    names = _dimension_names(source.model)
    return {
        (name, axis): (0 if "past" in names.get((name, axis), "") else 1, length)
        for name, shape in shapes.items()
        for axis, size in enumerate(shape)
        if axis > 0 and size < 0
    }


def _dimension_names(model: onnx.ModelProto) -> dict[tuple[str, int], str]:
    return {
        (value.name, axis): size.dim_param
        for value in model.graph.input
        for axis, size in enumerate(value.type.tensor_type.shape.dim)
        if size.dim_param
    }
