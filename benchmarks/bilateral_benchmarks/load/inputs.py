"""Inputs of measurements: made-up ones of any batch and length, or real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array, TensorSpec

DEFAULT_LENGTH = 128


def made_up(
    specs: Sequence[TensorSpec], batch: int = 1, length: int = DEFAULT_LENGTH, seed: int = 0
) -> dict[str, Array]:
    """Return inputs that fit: normal floats, ones for integers (no index is out of range), true.

    Args:
        specs: The model's inputs.
        batch: Size of the first axis where it is free.
        length: Size of every other free axis.
        seed: Of the floats.

    Raises:
        UserError: The batch or length is not positive or too large, or the model's batch is fixed
            to another.
    """
    if batch < 1 or length < 1:
        raise UserError(f"batch {batch}, length {length}", "Both must be at least 1.")
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for spec in specs:
        first, *others = spec.shape or (1,)
        if isinstance(first, int) and first != batch:
            raise UserError(
                f"input {spec} has a fixed batch, not {batch}", "Export it with a dynamic batch."
            )
        shape = (batch, *(length if isinstance(size, str) else size for size in others))
        try:
            if spec.dtype.startswith("float"):
                arrays[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
            else:
                arrays[spec.name] = np.ones(shape, dtype=spec.dtype)
        except (MemoryError, ValueError) as error:  # ValueError: more than an array may ever have
            raise UserError(
                f"input {spec.name} of shape {'x'.join(map(str, shape))} does not fit into memory",
                "Use a smaller batch or length.",
            ) from error
    return arrays


def choose(
    specs: Sequence[TensorSpec], path: Path | None, batch: int, length: int = DEFAULT_LENGTH
) -> dict[str, Array]:
    """Return the first `batch` items of an `.npz` file, or made-up inputs where there is none.

    Raises:
        UserError: The file cannot be read, does not fit, or has too few items.
    """
    if path is None:
        return made_up(specs, batch, length)
    # Only here: it brings torch, which made-up inputs need not wait for.
    from bilateral_export.parity.inputs.samples import real_samples

    arrays = real_samples(specs, path, (batch,))[0].arrays
    if any(len(array) < batch for array in arrays.values()):
        raise UserError(f"{path} has fewer than {batch} items", "Use a smaller --batch.")
    return arrays
