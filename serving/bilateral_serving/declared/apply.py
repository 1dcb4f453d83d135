"""A document applied to a repository: what differs is added as a new version, all or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bilateral_export.errors import UserError
from bilateral_export.files import sha256, write_text
from bilateral_export.parity.report.document import read_report
from bilateral_serving import repository as repositories
from bilateral_serving.config import CONFIG_FILE, version_directories
from bilateral_serving.declared.document import Declared, DeclaredModel
from bilateral_serving.repository.lock import one_at_a_time

# In the repository; what was applied, by model, so that the same again changes nothing.
RECORD = ".applied.json"


@dataclass(frozen=True)
class Applied:
    """What became of a model: the version that is what the document says.

    Attributes:
        name: The model.
        version: Its version; of one that was removed the one that was applied last.
        change: "settings changed": the file is the one applied last, served otherwise.
    """

    name: str
    version: int
    change: Literal["added", "settings changed", "unchanged", "removed"]


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
            digest = sha256(model.file)
            how = model.model_dump_json(exclude={"file", "parity", "cases"})
            same_file = known is not None and known.sha256 == digest
            same_how = known is not None and known.declared == how
            if known and same_file and same_how and known.version == _newest(name, repository):
                done.append(Applied(name, known.version, "unchanged"))
                continue
            config = repository / name / CONFIG_FILE
            before = config.read_text(encoding="utf-8") if config.is_file() else None
            version = _add(name, model, repository)
            undo.append((name, version, before))
            record.models[name] = _Entry(version=version, sha256=digest, declared=how)
            otherwise = same_file and not same_how
            done.append(Applied(name, version, "settings changed" if otherwise else "added"))
    except BaseException:
        for name, version, before in reversed(undo):
            _remove(name, version, before, repository)
        raise
    # Last: what was removed cannot be taken back.
    gone = [name for name in record.models if prune and name not in declared.models]
    for name in gone:
        if (repository / name).is_dir():
            repositories.remove(name, repository)
        done.append(Applied(name, record.models.pop(name).version, "removed"))
    if undo or gone:
        write_text(path, record.model_dump_json(indent=1))
    return tuple(done)


def _newest(name: str, repository: Path) -> int:
    directory = repository / name
    return max(version_directories(directory) if directory.is_dir() else {}, default=0)


def _add(name: str, model: DeclaredModel, repository: Path) -> int:
    try:
        entry = repositories.add(
            name,
            model.file,
            repository,
            target=model.target,
            settings=model.settings.given(),
            lower=model.lower,
            parity=read_report(model.parity) if model.parity else None,
        )
    except UserError as error:
        raise UserError(f"models.{name}: {error.problem}", error.fix) from error
    return entry.versions[-1].number


def _remove(name: str, version: int, before: str | None, repository: Path) -> None:
    if before is None:
        repositories.remove(name, repository)
        return
    repositories.remove(name, repository, version=version)
    write_text(repository / name / CONFIG_FILE, before)


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
