"""Token matrices of a rewritten graph: the record of which tensor of the export each one holds."""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

from bilateral_export.tensors import Array

# Its name is from the first version of the rewrite; files carry it.
METADATA_KEY = "bilateral.tokens_first"


def record_matrices(model: onnx.ModelProto, held: Mapping[str, str]) -> None:
    """Write into a model's metadata what `held_tensors` reads."""
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(held)


def held_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Return, by matrix `[N B, width]`, the tensor `[B, N, width]` that it has replaced."""
    written = {entry.key: entry.value for entry in model.metadata_props}
    held: dict[str, str] = json.loads(written.get(METADATA_KEY, "{}"))
    return held


def to_matrix(tensor: Array) -> Array:
    """Return a tensor `[B, N, width]` as the matrix `[N B, width]` that holds it."""
    return tensor.swapaxes(0, 1).reshape(-1, tensor.shape[-1])
