"""Notes on a model that was added: what its file lacks, and what its server must be told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving.config import MODEL_FILES
from bilateral_serving.repository.entries import Entry
from bilateral_serving.repository.plan import launch_arguments


def notes_on(entry: Entry, model: Path) -> tuple[str, ...]:
    """Return what to know before the newest version is served, one sentence each.

    Args:
        entry: What `add` returned.
        model: The file that it was given.
    """
    remarks = [f"Note on {model}: {remark}" for remark in entry.remarks]
    return (*remarks, *(_launch(entry) if entry.target == "tensorrt" else _changes(model)))


def _launch(entry: Entry) -> Iterator[str]:
    """Yield what tritonserver must be given by hand; `bilateral serve` does it by itself."""
    try:
        plan = entry.versions[-1].directory / MODEL_FILES["tensorrt"]
        arguments = launch_arguments([plan])
    except UserError as refusal:  # it is added all the same; another machine may serve it
        yield f"Before it is served: {refusal}"
        return
    if arguments:
        yield f"Start tritonserver with {' '.join(arguments)}"


def _changes(model: Path) -> Iterator[str]:
    from bilateral_export.artifact import load_graph
    from bilateral_export.graph.changes import changes

    for change in changes(load_graph(model, weights=False)):
        yield f"{model} was changed since its export: {change}"
