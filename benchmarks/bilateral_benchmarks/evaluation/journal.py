"""Answers item by item in a JSONL file, from which an interrupted evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors, require_replaceable, to_json

Key = tuple[str, str, str]


class Journal:
    """Remembers answers by what they depend on: the model's identity, the item, its bytes.

    One file may hold the answers of many models; each is asked once. A line that was not written
    to its end is written again.

    Args:
        path: The file; made if it is not there. None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[Key, dict[str, Any]] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Journal:
        """Read what is there.

        Raises:
            UserError: It is another file, or cannot be written.
        """
        if self._path is None:
            return self
        require_replaceable(self._path)
        whole = self._read(self._path) if self._path.exists() else 0
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.truncate(whole)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, key: Key) -> dict[str, Any] | None:
        """Return the answer to an item; None if it is not known."""
        return self._known.get(key)

    def add(self, key: Key, name: str, answer: Mapping[str, Any]) -> None:
        """Remember an answer; what went wrong is tried again by the next call.

        Args:
            key: Identity of the model, the item's id, SHA-256 of its bytes.
            name: The model's name, for whoever reads the file.
            answer: What JSON can hold.
        """
        self._known[key] = dict(answer)
        if self._file is not None and "error" not in answer:
            model, item, sha256 = key
            line = {"model": model, "name": name, "item": item, "sha256": sha256, **answer}
            with disk_errors(Path(self._file.name)):
                self._file.write(to_json(line, indent=None))

    def _read(self, path: Path) -> int:
        """Read the lines; returns the length of those that are whole."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                key = tuple(entry.pop(part) for part in ("model", "item", "sha256"))
                entry.pop("name")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{path}: line {number} is not an answer of `bilateral evaluate`",
                    "Give the name of another file.",
                ) from error
            model, item, sha256 = key
            self._known[model, item, sha256] = entry
        if not whole and not content.startswith(b'{"model": '[: len(content)]):
            raise UserError(
                f"{path} does not hold answers of `bilateral evaluate`",
                "Give the name of another file.",
            )
        return whole
