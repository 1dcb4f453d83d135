"""The interface of a runtime, and the base class of those in this package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from bilateral_export.tensors import Array, TensorSpec, check_arrays

if TYPE_CHECKING:
    from typing_extensions import Self

Loaded = TypeVar("Loaded")


@runtime_checkable
class Runner(Protocol):
    """A model, ready to run on one runtime, from `__enter__` to `__exit__`.

    Attributes:
        name: For tables and messages, such as "onnxruntime fp16".
    """

    name: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Args:
            arrays: One array per input, by name.

        Returns:
            One array per output, by name; the caller owns them.

        Raises:
            UserError: An array does not fit its input.
        """

    def __enter__(self) -> Runner:
        """Load the model."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release what the model holds."""


def run_in_batches(runner: Runner, inputs: Mapping[str, Array], output: str, batch: int) -> Array:
    """Return one output of all items, of which `batch` are run at a time."""
    items = len(next(iter(inputs.values())))
    return np.concatenate(
        [
            runner.run({name: array[at : at + batch] for name, array in inputs.items()})[output]
            for at in range(0, items, batch)
        ]
    )


class BaseRunner(ABC, Generic[Loaded]):
    """A `Runner` that loads, checks and releases; a runtime writes `_open` and `_run`.

    Args:
        name: For tables and messages.
        model: The model's name in messages about inputs that do not fit; `name` where it is empty.

    Attributes:
        inputs: What `run` takes; set by `_open` at the latest.
        outputs: What `run` returns; likewise.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, name: str, model: str = "") -> None:
        self.name = name
        self._model_name = model or name
        self._open_model: Loaded | None = None

    @abstractmethod
    def _open(self) -> Loaded:
        """Load the model and return what `_run` needs.

        Raises:
            UserError: The model cannot be loaded here.
        """

    def _close(self, loaded: Loaded) -> None:
        """Release what does not go with the last reference to `loaded`."""

    @abstractmethod
    def _run(self, loaded: Loaded, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on arrays that fit the inputs."""

    @property
    def loaded(self) -> Loaded:
        """What `_open` returned."""
        assert self._open_model is not None, "use the runner as a context manager"
        return self._open_model

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Runner.run`."""
        loaded = self.loaded
        check_arrays(self.inputs, arrays, self._model_name)
        return self._run(loaded, arrays)

    def __enter__(self) -> Self:
        """Load the model; see `_open`."""
        self._open_model = self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release what the model holds."""
        if self._open_model is not None:
            self._close(self._open_model)
        self._open_model = None
