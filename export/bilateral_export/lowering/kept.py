"""The lowered form of a file, kept beside it for the next time it is opened."""

from __future__ import annotations

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bilateral_export.files import atomic_file, sha256, write_text
from bilateral_export.lowering.lower import LoweredModel, Lowering

DIRECTORY = ".bilateral"


class _Record(BaseModel):
    """What a kept file is: of which source (in `lowering`), made by which code, and its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_by: str
    sha256: str
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
        known = (record.made_by, record.lowering.source_sha256, record.sha256)
        if known == (_code(), sha256(model), sha256(path)):
            return LoweredModel(path, record.lowering)
    except (OSError, ValidationError):
        pass
    return None


def keep(done: LoweredModel, model: Path, runtime: str) -> None:
    """Keep a form that was made, in the directory `.bilateral` beside the file.

    Raises:
        UserError: The directory cannot be written, or the disk is full.
    """
    path, about = _paths(model, runtime)
    with atomic_file(path) as temporary:
        shutil.copyfile(done.path, temporary)
        record = _Record(made_by=_code(), sha256=sha256(temporary), lowering=done.lowering)
    write_text(about, record.model_dump_json())


def _paths(model: Path, runtime: str) -> tuple[Path, Path]:
    path = model.parent / DIRECTORY / f"{model.name}.{runtime}.onnx"
    return path, path.with_suffix(".json")


def _code() -> str:
    """Return what a lowering depends on beside its source: its code, and who judged it."""
    digest = hashlib.sha256(f"{version('onnx')} {version('onnxruntime')}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
