"""The lowered form of a file, kept beside it for the next time it is opened."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bilateral_export.artifact import load_graph, require_external_files
from bilateral_export.files import atomic_file, sha256, write_text
from bilateral_export.lowering.lower import LoweredModel, Lowering

DIRECTORY = ".bilateral"


class _Record(BaseModel):
    """What a kept file is: of which source, made by which code, and its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_by: str
    sha256: str
    source: dict[str, str]
    lowering: Lowering


def read_kept(model: Path, runtime: str) -> LoweredModel | None:
    """Return the form that was kept, or None where none is, or it is not what was kept.

    It is used only where the source, the code of the lowering and the kept file itself have the
    hashes that they had.

    Args:
        model: The exported file.
        runtime: "onnxruntime-cpu" or "openvino".
    """
    path, about = _paths(model, runtime)
    try:
        record = _Record.model_validate_json(about.read_bytes())
        known = (record.made_by, record.source, record.sha256)
        source = _hashes(model, {model.name, *record.source})
        if known == (_code(), source, sha256(path)):
            return LoweredModel(path, record.lowering)
    except (OSError, ValidationError):
        pass
    return None


def read_source(model: Path) -> dict[str, str]:
    """Return the hashes of an exported file and of the files with its weights, by their names.

    Raises:
        UserError: It is not an ONNX model, or lacks an external file.
    """
    files = require_external_files(model, load_graph(model, weights=False))
    return _hashes(model, [model.name, *(os.path.relpath(file, model.parent) for file in files)])


def keep(done: LoweredModel, model: Path, runtime: str, source: dict[str, str]) -> None:
    """Keep a form that was made, in the directory `.bilateral` beside the file.

    Nothing is kept of a file that was written while it was lowered.

    Args:
        done: The form.
        model: The exported file.
        runtime: What it was lowered for.
        source: What `read_source` returned before.

    Raises:
        UserError: The directory cannot be written, or the disk is full.
    """
    if read_source(model) != source:
        return
    path, about = _paths(model, runtime)
    with atomic_file(path) as temporary:
        shutil.copyfile(done.path, temporary)
        record = _Record(
            made_by=_code(), sha256=sha256(temporary), source=source, lowering=done.lowering
        )
    write_text(about, record.model_dump_json())


def _hashes(model: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256(model.parent / name) for name in names}


def _paths(model: Path, runtime: str) -> tuple[Path, Path]:
    path = model.parent / DIRECTORY / f"{model.name}.{runtime}.onnx"
    return path, path.with_suffix(".json")


def _code() -> str:
    """Return what a lowering depends on beside its source: its code, and who judged it."""
    digest = hashlib.sha256(f"{version('onnx')} {version('onnxruntime')}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
