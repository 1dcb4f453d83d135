"""The readiness file: there exactly while a server is ready."""

from __future__ import annotations

import os
from pathlib import Path

from bilateral_export.errors import UserError


class ReadyFile:
    """Says to whoever looks at files that a server is ready, such as a probe of Kubernetes.

    It holds the process number of who serves: of a process that was killed it may be left.

    Args:
        path: The file; None: there is none.

    Raises:
        UserError: It cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = None if path is None else path.absolute()
        if self._path is None:
            return
        try:
            self.disappear()
            self._write_draft().unlink()
        except OSError as error:
            raise UserError(
                f"the readiness file {path} cannot be written: {error.strerror}",
                "Name a file in a directory that exists and can be written with --ready-file.",
            ) from error

    def appear(self) -> None:
        """Make it, whole at once."""
        if self._path is not None:
            self._write_draft().replace(self._path)

    def disappear(self) -> None:
        """Remove it."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write_draft(self) -> Path:
        assert self._path is not None
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(f"{os.getpid()}\n", encoding="ascii")
        return draft
