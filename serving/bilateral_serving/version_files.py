"""The files of one version of a model, and the configuration beside it: written both or neither."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from bilateral_export.files import atomic_directory, disk_errors, write_text
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_serving import plan as plans
from bilateral_serving.artifact import Artifact
from bilateral_serving.config import (
    CONFIG_FILE,
    LABELS_FILE,
    MODEL_FILES,
    VOCABULARY_FILE,
    Target,
)

Progress = Callable[[int, int], None]
"""Called with the bytes copied so far and the bytes in all."""

_CHUNK = 8 << 20


def write_version(
    directory: Path,
    number: int,
    artifact: Artifact,
    target: Target,
    text: str,
    new: bool,
    on_progress: Progress | None,
) -> None:
    """Write a version and the configuration: both or neither.

    Args:
        directory: The model's.
        number: The version's.
        artifact: The model file.
        target: The backend that will run it.
        text: The whole of config.pbtxt.
        new: Whether the model is not there yet.
        on_progress: Called while files are copied.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    if new:
        with atomic_directory(directory) as draft:
            (draft / str(number)).mkdir()
            _fill_version(draft / str(number), artifact, target, on_progress)
            _write_labels(draft, artifact)
            (draft / CONFIG_FILE).write_text(text, encoding="utf-8")
    else:
        # The configuration first: one that describes a version still to come does no harm.
        with (
            disk_errors(directory),
            _restored_on_error(directory / CONFIG_FILE, directory / LABELS_FILE),
            atomic_directory(directory / str(number)) as draft,
        ):
            _fill_version(draft, artifact, target, on_progress)
            _write_labels(directory, artifact)
            write_text(directory / CONFIG_FILE, text)


def _fill_version(
    directory: Path, artifact: Artifact, target: Target, on_progress: Progress | None
) -> None:
    copies = {artifact.path: directory / MODEL_FILES[target]}
    copies |= {path: directory / path.name for path in artifact.companions}
    if target == "tensorrt" and plans.has_manifest(artifact.path):
        served = directory / MODEL_FILES[target]
        copies[plans.manifest_path(artifact.path)] = plans.manifest_path(served)
    total = sum(path.stat().st_size for path in copies)
    done = 0
    for source, copy in copies.items():
        with source.open("rb") as reader, copy.open("xb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)
                done += len(chunk)
                if on_progress:
                    on_progress(done, total)
            # Before the rename that makes it visible, the data must be on the disk.
            writer.flush()
            os.fsync(writer.fileno())
    if target == "python":
        for name, content in backend_files(artifact).items():
            (directory / name).write_bytes(content)


def backend_files(artifact: Artifact) -> dict[str, bytes]:
    """What lies beside a model that the Python backend runs, by name.

    `model.py` always; for a language model its vocabulary and what streams words, too.
    """
    backend = resources.files("bilateral_serving.python_backend")
    files = {"model.py": (backend / "model.py").read_bytes()}
    about = artifact.metadata.preprocessing if artifact.metadata else None
    if isinstance(about, TextPreprocessing) and about.vocabulary:
        text = resources.files("bilateral_export") / "text.py"
        files |= {
            VOCABULARY_FILE: "\n".join(about.vocabulary).encode(),
            "stream.py": (backend / "stream.py").read_bytes(),
            "bilateral_text.py": text.read_bytes(),
        }
    return files


def _write_labels(directory: Path, artifact: Artifact) -> None:
    labels = artifact.metadata.labels if artifact.metadata else ()
    if labels:
        write_text(directory / LABELS_FILE, "".join(f"{label}\n" for label in labels))


@contextlib.contextmanager
def _restored_on_error(*paths: Path) -> Iterator[None]:
    """Put files back as they were if the block raises. A full disk cannot prevent that."""
    with tempfile.TemporaryDirectory(prefix=".before-", dir=paths[0].parent) as before:
        copies = {path: Path(before) / path.name for path in paths if path.exists()}
        for path, copy in copies.items():
            shutil.copy2(path, copy)
        try:
            yield
        except BaseException:
            for path in paths:
                if path in copies:
                    copies[path].replace(path)
                else:
                    path.unlink(missing_ok=True)
            raise
