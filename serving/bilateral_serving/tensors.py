"""The name, element type and shape of an input or output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: The tensor's name in the graph.
        datatype: Triton's name of the element type, such as "FP32".
        shape: One entry per axis: its size, or the name of a size that is free ("" if unnamed).
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as Triton writes it: -1 for a free size."""
        return tuple(size if isinstance(size, int) else -1 for size in self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.dims)}"
