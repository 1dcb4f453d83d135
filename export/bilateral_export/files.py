"""Atomic writes: a file is whole or absent, for it is written under another name and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel


def require_file(path: Path, what: str) -> Path:
    """Return `path` if it is a readable, non-empty regular file.

    Args:
        path: The file to look at.
        what: What the file should be, for the message, such as "checkpoint".

    Raises:
        UserError: The file is missing, a directory, empty or unreadable.
    """
    try:
        exists = path.exists()
    except OSError as error:  # a folder on the way that may not be entered, a name too long
        reason = error.strerror or str(error)
        raise UserError(f"{what} {path} cannot be read: {reason}", "Check the path.") from error
    if not exists:
        raise UserError(f"{what} {path} does not exist", "Check the path.")
    if path.is_dir():
        raise UserError(f"{what} {path} is a directory", "Give the file inside it.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} {path} cannot be read", "Check its permissions.")
    if path.stat().st_size == 0:
        raise UserError(f"{what} {path} is empty", "Write or download it again.")
    return path


def require_replaceable(target: Path) -> None:
    """Refuse to write a file where something lies that a rename must not replace: /dev/null, say.

    Raises:
        UserError: `target` is a directory, a device or a pipe, or its name is too long.
    """
    with disk_errors(target):
        is_directory, exists = target.is_dir(), target.exists()
    if is_directory:
        raise UserError(f"{target} is a directory", "Give the name of a file to write.")
    # /dev/stdout is a link to a file where the output goes to one.
    if exists and (not target.is_file() or target.absolute().parent == Path("/dev")):
        raise UserError(f"{target} is not a regular file", "Give the name of a file to write.")


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling directory that becomes `target` when the block succeeds.

    Nothing is left behind when the block raises, whether by error or by Ctrl-C.

    Raises:
        UserError: `target` exists already, its parent cannot be written, or the disk is full.
    """
    if target.exists():
        raise UserError(f"{target} exists already", "Remove it or choose another name.")
    with _temporary_directory(target.parent) as temporary, disk_errors(target):
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(target)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path with `target`'s name that replaces `target` when the block succeeds.

    The path lies in a temporary directory beside `target`, so that what a writer puts next to its
    file (ONNX external data) has its final name too: every file found there is moved.

    Raises:
        UserError: It is something else than a file, the directory cannot be written, or the disk is
            full.
    """
    require_replaceable(target)
    with _temporary_directory(target.parent) as temporary, disk_errors(target):
        yield temporary / target.name
        # The named file last: a reader that sees it finds everything it refers to.
        written = sorted(temporary.iterdir(), key=lambda path: path.name == target.name)
        for path in written:
            path.chmod(0o644)
            path.replace(target.parent / path.name)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def write_text(target: Path, text: str) -> None:
    """Write `text` (UTF-8) to `target`, whole or not at all.

    Bytes of a file's name that are not UTF-8 are written as escapes.
    """
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_json(value: BaseModel | dict[str, Any] | list[Any], indent: int | None = 1) -> str:
    """Return a report or an answer as the text of one JSON document, in one line without `indent`.

    Raises:
        UserError: A number is NaN or infinite, which JSON does not have; it is named by its path.
    """
    document = value if isinstance(value, (dict, list)) else value.model_dump(mode="json")
    try:
        return json.dumps(document, indent=indent, allow_nan=False, default=_plain) + "\n"
    except ValueError as error:
        where = next(_not_finite(document), None)
        if where is None:
            raise
        raise UserError(f"{where} is not a finite number, so the result is not valid") from error


def _plain(value: object) -> object:
    """Return what JSON writes for a NumPy scalar, or for a path."""
    return value.item() if hasattr(value, "item") else str(value)


def _not_finite(value: object, path: str = "") -> Iterator[str]:
    """Yield names of numbers JSON cannot write, such as `[0].predictions[2].probability`."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path.lstrip('.')} ({value})"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _not_finite(item, f"{path}[{number}]")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn an `OSError` met while writing `target` into a `UserError` that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write {target}: {reason}", "Nothing was left there; free space and try again."
        ) from error


@contextlib.contextmanager
def _temporary_directory(parent: Path) -> Iterator[Path]:
    """Yield a new directory in `parent`, removed afterwards where it still has its name."""
    # Its name is known before it exists: a signal that comes as soon as it does leaves nothing.
    temporary = parent / f".partial-{secrets.token_hex(8)}"
    try:
        with disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(mode=0o700)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
