"""What every runtime looks like from outside."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, runtime_checkable

from bilateral_export.tensors import Array, TensorSpec


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
