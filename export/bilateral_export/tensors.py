"""Names, types and shapes of a model's inputs and outputs, as every runtime describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bilateral_export.errors import UserError

Array = NDArray[np.generic]
BATCH = "batch"

# The output of a model without a head: vectors, which decide nothing.
FEATURES = "features"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Its name in the graph.
        dtype: Its NumPy type name, such as "float32".
        shape: A whole number per fixed dimension, a name per dynamic one; the batch comes first.
            A dynamic dimension that is given as -1 gets a name: "batch" where it is the first, else
            one that no other dimension has.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        named = (
            (f"{self.name}.{axis}" if axis else BATCH) if size == -1 else size
            for axis, size in enumerate(self.shape)
        )
        object.__setattr__(self, "shape", tuple(named))

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape with -1 for every dynamic dimension, as TensorRT and Triton write it."""
        return tuple(-1 if isinstance(size, str) else size for size in self.shape)

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """Return the shape at one batch size, for a tensor whose other dimensions are fixed."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)


def check_arrays(specs: Sequence[TensorSpec], arrays: Mapping[str, Array], model: str) -> None:
    """Refuse arrays that do not fit the specs.

    Args:
        specs: The inputs of a model.
        arrays: What is to be given to it.
        model: The model's name, for the message.

    Raises:
        UserError: A name is unknown or missing, a dtype differs, or a shape does not fit.
    """
    known = {spec.name for spec in specs}
    expected = f"It takes {', '.join(map(str, specs))}."
    if unknown := sorted(set(arrays) - known):
        raise UserError(f"model {model} has no input {', '.join(unknown)}", expected)
    if missing := sorted(known - set(arrays)):
        raise UserError(f"model {model} was not given {', '.join(missing)}", expected)
    dynamic: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        if array.dtype.name != spec.dtype:
            raise UserError(
                f"input {spec.name} of model {model} is {array.dtype.name}",
                f"Expected {spec}; convert it with .astype({spec.dtype!r}).",
            )
        fits = array.ndim == len(spec.shape) and all(
            dynamic.setdefault(size, got) == got if isinstance(size, str) else size == got
            for size, got in zip(spec.shape, array.shape, strict=True)
        )
        # A cache may be empty; nothing else may.
        if not fits or (0 in array.shape and not spec.name.startswith("past_")):
            raise UserError(
                f"input {spec.name} of model {model} has shape {list(array.shape)}",
                f"Expected {spec}.",
            )
