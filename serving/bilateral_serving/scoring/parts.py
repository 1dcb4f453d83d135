"""One part of the output: rows with their provenance, as Parquet, whole or not there."""

from __future__ import annotations

import math
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
    columns |= _features(scored) if model.gives_features else _decisions(scored, model, top)
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


def _features(scored: Sequence[Scored]) -> dict[str, Any]:
    return {"features": _lists([one.output for one in scored])}


def _decisions(scored: Sequence[Scored], model: Model, top: int) -> dict[str, Any]:
    labels = model.metadata.labels
    rows = [None if one.output is None else _softmax(one.output.reshape(-1)) for one in scored]
    best = [None if row is None else int(row.argmax()) for row in rows]
    found: dict[str, Any] = {
        "decision": pa.array([_label(labels, each) for each in best], pa.string()),
        "decision_index": pa.array(best, pa.int32()),
        "probability": pa.array(
            [None if row is None else float(row.max()) for row in rows], pa.float32()
        ),
    }
    if not top:
        return found | {"probabilities": _lists(rows)}
    order = [None if row is None else np.argsort(-row, kind="stable")[:top] for row in rows]
    kept = [
        None if row is None or places is None else row[places]
        for row, places in zip(rows, order, strict=True)
    ]
    names = [
        None if places is None else [_label(labels, int(each)) for each in places]
        for places in order
    ]
    return found | {
        "top_labels": pa.array(names, pa.list_(pa.string())),
        "top_probabilities": _lists(kept),
    }


def _lists(rows: Sequence[Array | None]) -> pa.Array:
    """Return a column of float32 lists, without a Python object for each number."""
    sizes = [0 if row is None else math.prod(row.shape) for row in rows]
    flat = [np.asarray(row, dtype=np.float32).reshape(-1) for row in rows if row is not None]
    values = pa.array(np.concatenate(flat) if flat else np.empty(0, dtype=np.float32))
    ends = np.cumsum([0, *sizes], dtype=np.int32)
    missing = pa.array(np.array([row is None for row in rows]))
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=missing)


def _softmax(logits: Array) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max())
    return np.asarray(exponentials / exponentials.sum())


def _label(labels: Sequence[str], index: int | None) -> str | None:
    if index is None:
        return None
    return labels[index] if index < len(labels) else str(index)
