"""Model loading: how far it is, and the processes of models that died while they loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from bilateral_serving.server.processes.tritonserver import TritonProcess

# A model's process that ends while it loads says why through the server, within this time.
_LAST_WORDS_S = 3.0


@dataclass(frozen=True)
class Progress:
    """How far loading is."""

    loaded: tuple[str, ...]
    total: int
    elapsed_s: float


OnProgress = Callable[[Progress], None]


class CrashedError(Exception):
    """A model's process, or tritonserver itself, died while a model loaded; None: it may be any."""

    def __init__(self, model: str | None, reason: str) -> None:
        super().__init__(model, reason)
        self.model, self.reason = model, reason


class Loading:
    """Looks at the processes of models that load: Triton waits minutes for one that has died."""

    def __init__(self, triton: TritonProcess, models: Collection[str]) -> None:
        self._triton, self._models = triton, models
        self._missing_since: dict[str, float] = {}

    def under_way(self) -> str | None:
        """Return the one model that is loading; None if it is none, or one of several."""
        settled = {*self._triton.loaded, *self._triton.failed}
        loading = [model for model in self._triton.begun if model not in settled]
        return loading[0] if len(loading) == 1 else None

    def check(self) -> None:
        """Look at them once more.

        Raises:
            CrashedError: One has died, and Triton has not said so.
        """
        alive = {*self._triton.model_processes().values()}
        settled = {*self._triton.loaded, *self._triton.failed}
        now = time.monotonic()
        for model in self._triton.begun:
            if model not in self._models or model in settled or model in alive:
                self._missing_since.pop(model, None)
            elif now - self._missing_since.setdefault(model, now) > _LAST_WORDS_S:
                raise CrashedError(
                    model, f"its process died while loading: {self._triton.last_words()}"
                )
