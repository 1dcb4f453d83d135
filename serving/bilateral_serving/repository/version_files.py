"""The files of one version and the configuration beside them, written in an order that is safe."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.artifact import Artifact
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE, MODEL_FILES, VOCABULARY_FILE, Target
from bilateral_serving.repository import plan as plans

Progress = Callable[[int, int], None]
"""Called with the bytes copied so far and the bytes in all."""

# The backend's files of every model.
ALWAYS = ("model.py", "metrics.py", "tracing.py")
STREAMING = ("stream.py", "stream_together.py", "stream_batch.py", "stream_sending.py")
_CHUNK = 8 << 20


def fill_version(
    directory: Path, artifact: Artifact, target: Target, on_progress: Progress | None
) -> dict[str, str]:
    """Copy what one version consists of into its directory, which is made.

    Returns:
        The SHA-256 of every model file there, by name.
    """
    directory.mkdir(parents=True)
    copies = {artifact.path: directory / MODEL_FILES[target]}
    copies |= {path: directory / path.name for path in artifact.external_files}
    total = sum(path.stat().st_size for path in copies)
    done = 0
    digests: dict[str, str] = {}
    for source, copy in copies.items():
        digest = hashlib.sha256()
        with source.open("rb") as reader, copy.open("xb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
                done += len(chunk)
                if on_progress:
                    on_progress(done, total)
            # Before the rename that makes it visible, the data must be on the disk.
            writer.flush()
            os.fsync(writer.fileno())
        digests[copy.name] = digest.hexdigest()
    if target == "tensorrt" and plans.has_manifest(artifact.path):
        served = directory / MODEL_FILES[target]
        shutil.copyfile(plans.manifest_path(artifact.path), plans.manifest_path(served))
    if target == "python":
        for name, content in backend_files(artifact).items():
            (directory / name).write_bytes(content)
    return digests


def put_version(staged: Path, directory: Path, config: pb.ModelConfig, staging: Path) -> None:
    """Move a version into its model, and describe it in the model's configuration: both or neither.

    Killed at any point it leaves a model that loads: the version policy names no version that is
    not there, and no version is there that the configuration does not describe.

    Args:
        staged: The version's directory, filled; its name is its number.
        directory: The model's directory.
        config: The model's configuration with the new version in it.
        staging: A directory on the repository's file system for what is being written.
    """
    path, number = directory / CONFIG_FILE, int(staged.name)
    old = configs.read(path)
    described = pb.ModelConfig()
    described.CopyFrom(config)
    if number in config.version_policy.specific.versions:
        described.version_policy.CopyFrom(configs.without_version(config.version_policy, number))
        if not described.version_policy.HasField("specific"):
            described.version_policy.CopyFrom(old.version_policy)
    with restored_on_error(path, staging):
        replace_text(path, configs.write(described), staging)
        staged.rename(directory / staged.name)
        try:
            if described != config:
                replace_text(path, configs.write(config), staging)
        except BaseException:
            (directory / staged.name).rename(staged)
            raise


def replace_text(path: Path, text: str, staging: Path) -> None:
    """Write a file whole or not at all."""
    draft = staging / f"{path.name}.draft"
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


@contextlib.contextmanager
def restored_on_error(path: Path, staging: Path) -> Iterator[None]:
    """Put a text file back as it was if the block raises."""
    before = path.read_text(encoding="utf-8")
    try:
        yield
    except BaseException:
        if path.read_text(encoding="utf-8") != before:
            replace_text(path, before, staging)
        raise


def backend_code() -> dict[str, bytes]:
    """Return the Python files of this installation that the Python backend runs, by name."""
    backend = resources.files("bilateral_serving.python_backend")
    text = resources.files("bilateral_export") / "text.py"
    return {
        **{name: (backend / name).read_bytes() for name in (*ALWAYS, *STREAMING)},
        "bilateral_text.py": text.read_bytes(),
    }


def backend_files(artifact: Artifact) -> dict[str, bytes]:
    """Return what lies beside a model that the Python backend runs, by name.

    `model.py` and what observes it always; for a language model its vocabulary and what streams
    words, too.
    """
    code = backend_code()
    about = artifact.metadata.preprocessing if artifact.metadata else None
    if isinstance(about, TextPreprocessing) and about.vocabulary:
        return code | {VOCABULARY_FILE: "\n".join(about.vocabulary).encode()}
    return {name: code[name] for name in ALWAYS}
