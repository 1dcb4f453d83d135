"""The readiness file: there exactly while a server is ready."""

from __future__ import annotations

import contextlib
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
        self._wanted = False
        if self._path is None:
            return
        try:
            self._path.unlink(missing_ok=True)
            self._write_draft().unlink()
        except OSError as error:
            raise UserError(
                f"the readiness file {path} cannot be written: {error.strerror}",
                "Name a file in a directory that exists and can be written with --ready-file.",
            ) from error

    def appear(self) -> None:
        """Make it, whole at once; where that is not possible now, `tend` does it later."""
        self._wanted = True
        self.tend()

    def disappear(self) -> None:
        """Remove it."""
        self._wanted = False
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def tend(self) -> None:
        """Make it if it is wanted and not there: the disk was full, or somebody removed it."""
        if self._path is not None and self._wanted and not self._path.exists():
            with contextlib.suppress(OSError):
                self._write_draft().replace(self._path)

    def _write_draft(self) -> Path:
        assert self._path is not None
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            draft.write_text(f"{os.getpid()}\n", encoding="ascii")
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft
