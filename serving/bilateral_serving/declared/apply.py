"""A document applied to a repository: what differs is added as a new version, all or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bilateral_export.artifact import read_onnx
from bilateral_export.errors import UserError
from bilateral_export.files import sha256, write_text
from bilateral_export.parity.report.document import read_report
from bilateral_serving import repository as repositories
from bilateral_serving.config import CONFIG_FILE, version_directories
from bilateral_serving.declared.document import Declared, DeclaredModel
from bilateral_serving.repository.entries import existing_config
from bilateral_serving.repository.lock import one_at_a_time
from bilateral_serving.repository.provenance import read_provenance

# In the repository; what was applied, by model, so that the same again changes nothing.
RECORD = ".applied.json"


@dataclass(frozen=True)
class Applied:
    """What became of a model: the version that is what the document says.

    Attributes:
        name: The model.
        version: Its version; of one that was removed the one that was applied last.
        change: "settings changed": the file is the one applied last, served otherwise; "left": not
            removed, though the document no longer names it, because it was added to since by other
            means.
    """

    name: str
    version: int
    change: Literal["added", "settings changed", "unchanged", "removed", "left"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)

    version: int
    sha256: str
    declared: str


class _Record(BaseModel):
    models: dict[str, _Entry] = {}


def apply(declared: Declared, repository: Path, *, prune: bool = False) -> tuple[Applied, ...]:
    """Make a repository hold what a document declares; models that it does not name stay.

    A model whose file, target or settings differ from what was applied last, or that was added to
    since by other means, gets a new version. If one is refused, the versions that were added
    before it are removed again. Of two who apply at once the second waits.

    Args:
        declared: The document.
        repository: The repository's directory.
        prune: Whether models that were applied before and that the document no longer names are
            removed. What was added by other means stays.

    Raises:
        UserError: A model is refused, and says which.
    """
    with one_at_a_time(repository):
        return _apply(declared, repository, prune)


def _apply(declared: Declared, repository: Path, prune: bool) -> tuple[Applied, ...]:
    path = repository / RECORD
    record = _read(path)
    done: list[Applied] = []
    undo: list[tuple[str, int, str | None]] = []
    try:
        for name, model in declared.models.items():
            known = record.models.get(name)
            digest = _digest(name, model)
            how = model.model_dump_json(exclude={"file", "parity", "cases"})
            same_file = known is not None and known.sha256 == digest
            same_how = known is not None and known.declared == how
            if known and same_file and same_how and _is_newest(name, known, repository):
                done.append(Applied(name, known.version, "unchanged"))
                continue
            config = repository / name / CONFIG_FILE
            before = config.read_text(encoding="utf-8") if config.is_file() else None
            version = _add(name, model, repository)
            undo.append((name, version, before))
            record.models[name] = _Entry(version=version, sha256=digest, declared=how)
            otherwise = same_file and not same_how
            done.append(Applied(name, version, "settings changed" if otherwise else "added"))
        if undo:
            _write(path, record)
    except BaseException:
        for name, version, before in reversed(undo):
            _remove(name, version, before, repository)
        raise
    # Last: what was removed cannot be taken back.
    for name in [name for name in record.models if prune and name not in declared.models]:
        known = record.models.pop(name)
        there = (repository / name).is_dir()
        left = there and not _is_newest(name, known, repository)
        if there and not left:
            repositories.remove(name, repository)
        done.append(Applied(name, known.version, "left" if left else "removed"))
        _write(path, record)
    return tuple(done)


def _digest(name: str, model: DeclaredModel) -> str:
    """Return the hash of a model's file, its external weights included, as `add` notes it."""
    with _named(name):
        plan = model.target == "tensorrt"
        return sha256(model.file) if plan else read_onnx(model.file).sha256


def _is_newest(name: str, known: _Entry, repository: Path) -> bool:
    """Whether what was applied last is a model's newest version, and not another of its number."""
    directory = repository / name
    number = max(version_directories(directory) if directory.is_dir() else {}, default=0)
    if number != known.version:
        return False
    config = existing_config(directory)
    provenance = read_provenance(config, number) if config else None
    return provenance is not None and provenance.source_sha256 == known.sha256


def _add(name: str, model: DeclaredModel, repository: Path) -> int:
    with _named(name):
        entry = repositories.add(
            name,
            model.file,
            repository,
            target=model.target,
            settings=model.settings.given(),
            lower=model.lower,
            parity=read_report(model.parity) if model.parity else None,
        )
    return entry.versions[-1].number


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which model is refused."""
    try:
        yield
    except UserError as error:
        raise UserError(f"models.{name}: {error.problem}", error.fix) from error


def _remove(name: str, version: int, before: str | None, repository: Path) -> None:
    if before is None:
        repositories.remove(name, repository)
        return
    repositories.remove(name, repository, version=version)
    write_text(repository / name / CONFIG_FILE, before)


def _write(path: Path, record: _Record) -> None:
    write_text(path, record.model_dump_json(indent=1))


def _read(path: Path) -> _Record:
    try:
        return _Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _Record()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not what `apply` wrote: {error}",
            "Remove it: all is then added anew.",
        ) from error
