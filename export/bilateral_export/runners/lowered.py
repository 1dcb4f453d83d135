"""An exported file in the form that is fastest on one runtime, lowered when it is loaded."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.lowering.kept import keep, read_kept, read_source
from bilateral_export.lowering.lower import Lowering, has_attention, lower
from bilateral_export.runners.base import BaseRunner
from bilateral_export.runners.registry import DEFAULT, lowered_runtime
from bilateral_export.tensors import Array

_SHOWN = 300


class LoweredRunner(BaseRunner[BaseRunner[Any]]):
    """Runs an ONNX file on the CPU, lowered first.

    The lowered form is kept beside the file (`lowering.kept`), or made for this time alone where
    that directory cannot be written. The runtimes' own runners run a file as it is, which is what
    parity judges. A file that was lowered before, or has no bilateral attention, is run as it is
    here too; so is one that cannot be lowered, and `refused` then says why.

    Args:
        path: The ONNX file.
        runtime: The name of the runtime, from the registry.
        threads: Threads within one call; None leaves it to the runtime.
        lower: False runs the file as it is.

    Attributes:
        lowering: What was done, from `__enter__` on; None where nothing was.
        refused: Why the file could not be lowered, or "".

    Raises:
        UserError: The file does not exist, or no such runtime takes lowered files.
    """

    def __init__(
        self,
        path: Path,
        runtime: str = DEFAULT,
        threads: int | None = None,
        *,
        lower: bool = True,
    ) -> None:
        self._path = require_file(path, "model")
        self._runtime = lowered_runtime(runtime)
        self._threads = threads
        self._lower = lower
        super().__init__(self._runtime.load(path, threads=threads).name, path.name)
        self.lowering: Lowering | None = None
        self.refused = ""

    def _open(self) -> BaseRunner[Any]:
        """Lower the file and load the result.

        Raises:
            UserError: The file is not an ONNX model that the runtime can run.
        """
        # The runtimes have read the whole file when they have opened it.
        with tempfile.TemporaryDirectory() as scratch:
            path = self._lowered(Path(scratch)) if self._lower else self._path
            runner = self._runtime.load(path, threads=self._threads).__enter__()
        self.inputs, self.outputs = runner.inputs, runner.outputs
        return runner

    def _close(self, loaded: BaseRunner[Any]) -> None:
        loaded.__exit__(None, None, None)

    def _run(self, loaded: BaseRunner[Any], arrays: Mapping[str, Array]) -> dict[str, Array]:
        return loaded._run(loaded.loaded, arrays)

    def _lowered(self, scratch: Path) -> Path:
        runtime = self._runtime.lowering
        done = read_kept(self._path, runtime)
        if done is None:
            if not has_attention(self._path):
                return self._path
            try:
                source = read_source(self._path)
                done = lower(self._path, runtime, scratch / self._path.name)
            except Exception as error:  # the passes take what `bilateral export` writes for granted
                self.refused = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
                return self._path
            with contextlib.suppress(UserError):  # it is lowered anew next time
                keep(done, self._path, runtime, source)
        self.lowering = done.lowering
        return done.path
