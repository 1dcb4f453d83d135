"""A model made ready for the parser, with what its metadata says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from bilateral_export.artifact import (
    document,
    interface,
    load_graph,
    require_external_files,
)
from bilateral_export.engine.attention_path import name_attention_nodes, use_function_bodies
from bilateral_export.engine.installation.plugin import find_plugin, require_plugin
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.profiles import Shape
from bilateral_export.metadata import METADATA_KEY, image_sizes


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


def read_source(path: Path, options: BuildOptions) -> Source:
    """Return a model ready for the parser; decides what runs its attention.

    Raises:
        UserError: The file is not an ONNX model, lacks its weights, or the plugin that was asked
            for is not there.
    """
    model = load_graph(path, weights=False)
    require_external_files(path, model)
    names = name_attention_nodes(model)
    plugin = _choose_plugin(bool(names), options)
    if plugin is None:
        use_function_bodies(model)
    return Source(path, model, names, document(model, METADATA_KEY), plugin)


def _choose_plugin(has_attention: bool, options: BuildOptions) -> Path | None:
    if options.attention == "function" or not has_attention:
        return None
    if options.attention == "plugin" or options.plugin is not None or options.embed_plugin:
        return require_plugin(options.plugin)
    return find_plugin()


def dimension_sizes(
    source: Source, shapes: dict[str, Shape]
) -> dict[tuple[str, int], tuple[int, int]]:
    """Return the sizes of each dynamic dimension after the first, where the metadata says them.

    A sequence is as long as the model's configuration says; one that counts what is cached may be
    empty. Images are as large as the sizes it was exported for.
    """
    return {place: (low, high) for place, (low, _, high) in _known_sizes(source, shapes).items()}


def usual_sizes(source: Source, shapes: dict[str, Shape]) -> dict[tuple[str, int], int]:
    """Return the size to tune each of them for: the model's own."""
    return {place: usual for place, (_, usual, _) in _known_sizes(source, shapes).items()}


def _known_sizes(
    source: Source, shapes: dict[str, Shape]
) -> dict[tuple[str, int], tuple[int, int, int]]:
    model = (source.metadata or {}).get("model")
    if not isinstance(model, dict):
        return {}
    names = {spec.name: spec.shape for spec in interface(source.model)[0]}
    free = [
        (name, axis)
        for name, shape in shapes.items()
        for axis, size in enumerate(shape)
        if axis > 0 and size < 0
    ]
    if images := image_sizes(model):
        return {(name, axis): images[str(names[name][axis])] for name, axis in free}
    length = model.get("length") or model.get("context")
    if not isinstance(length, int):
        return {}
    return {
        (name, axis): (0 if "past" in str(names[name][axis]) else 1, length, length)
        for name, axis in free
    }
