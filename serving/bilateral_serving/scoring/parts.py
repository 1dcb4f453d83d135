"""One part of the output: rows with their provenance, as Parquet, whole or not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bilateral_export.files import to_json
from bilateral_export.tensors import Array
from bilateral_serving.scoring.items import Item
from bilateral_serving.scoring.model import Model
from bilateral_serving.scoring.plan import written
from bilateral_serving.scoring.scorer import Scored

METADATA_KEY = b"bilateral.scores"


def write_part(
    target: Path, items: Sequence[Item], scored: Sequence[Scored], model: Model, top: int = 0
) -> None:
    """Write the rows of a chunk, which are on the disk when this returns.

    Args:
        target: The part.
        items: Of the chunk.
        scored: The outcome for each.
        model: What scored them.
        top: Keep the probabilities of so many classes, best first; 0: of all, in their order.
    """
    columns: dict[str, Any] = {
        "path": [os.fsencode(item.path).decode(errors="backslashreplace") for item in items]
    }
    missing = np.array([one.output is None for one in scored])
    columns |= _scores(
        [one.output for one in scored if one.output is not None], missing, model, top
    )
    columns["error"] = pa.array([one.error or None for one in scored], pa.string())
    for name, value in (
        ("model_sha256", model.sha256),
        ("parity", model.parity),
        ("versions", ", ".join(model.versions)),
    ):
        indices = pa.array(np.zeros(len(items), dtype=np.int8))
        columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array([value]))
    table = pa.table(columns)
    about = {
        **model.identity,
        "checkpoint_sha256": model.metadata.checkpoint_sha256,
        "labels": list(model.metadata.labels),
        "preprocessing": model.preprocessing.model_dump(mode="json"),
        "versions": list(model.versions),
        "shape": next((list(one.output.shape) for one in scored if one.output is not None), None),
    }
    table = table.replace_schema_metadata({METADATA_KEY: to_json(about, indent=None).strip()})
    with written(target) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _scores(
    outputs: Sequence[Array], missing: NDArray[np.bool_], model: Model, top: int
) -> dict[str, Any]:
    """Return the columns of what was scored, null where an item is missing."""
    labels = model.metadata.labels
    # A model's outputs are of one shape; without any, the columns have their types all the same.
    rows = np.stack(outputs).reshape(len(outputs), -1) if outputs else np.empty((0, 1))
    if model.gives_features:
        return {"features": _lists(rows, missing)}
    rows = _softmax(rows)
    best = rows.argmax(axis=1)
    names = pa.array([_label(labels, int(index)) for index in best], pa.string())
    found: dict[str, Any] = {
        "decision": _spread(names, missing),
        "decision_index": _spread(pa.array(best.astype(np.int32)), missing),
        "probability": _spread(pa.array(rows.max(axis=1).astype(np.float32)), missing),
    }
    if not top:
        return found | {"probabilities": _lists(rows, missing)}
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    kept = pa.array([[_label(labels, int(i)) for i in one] for one in order], pa.list_(pa.string()))
    return found | {
        "top_labels": _spread(kept, missing),
        "top_probabilities": _lists(np.take_along_axis(rows, order, axis=1), missing),
    }


def _lists(rows: Array, missing: NDArray[np.bool_]) -> pa.Array:
    """Return a column of float32 lists, without a Python object for each number."""
    ends = np.cumsum(np.concatenate([[0], np.where(missing, 0, rows.shape[1])]))
    values = pa.array(np.ascontiguousarray(rows, dtype=np.float32).reshape(-1))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, mask=pa.array(missing))


def _spread(values: pa.Array, missing: NDArray[np.bool_]) -> pa.Array:
    """Return a column with the values in their order, and null where one is missing."""
    places = np.cumsum(~missing) - 1
    return values.take(pa.array(places, mask=missing))


def _softmax(logits: Array) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)
