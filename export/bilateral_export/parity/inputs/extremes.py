"""Extreme inputs: zeros, saturation, NaN and infinity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bilateral_export.models.family import Family
from bilateral_export.parity.inputs.samples import Sample
from bilateral_export.tensors import Array

# Far outside what preprocessing makes, and far inside fp16's largest number. What eager PyTorch's
# error is at one such input is luck, so there are a few.
SATURATED = 100.0
LEVELS = (1.0, 0.95, 0.9, 0.85)


def extreme_samples(model: Family, seed: int = 0) -> list[Sample]:
    """Return samples of a few items: extremes between two that the family draws as usual.

    Floating-point inputs are set to zero, saturated at a few levels, and given a NaN or an
    infinity.

    Args:
        model: The model the inputs are for.
        seed: Of the items beside the extreme ones.
    """
    made = {}
    for name, value in (("zeros", 0.0), ("saturated", SATURATED), ("negative", -SATURATED)):
        made[name] = _with(model, seed, [value * level for level in LEVELS if value or level == 1])
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("minus infinity", -np.inf)):
        made[name] = _with(model, seed, [value], everywhere=False)
    return [Sample(name, arrays) for name, arrays in made.items() if arrays is not None]


def token_extremes(model: Family, seed: int = 0) -> list[Sample]:
    """Return the same for token ids: an item holds only the smallest, or the largest, drawn."""
    drawn = model.example(len(LEVELS) + 2, np.random.default_rng(seed))
    integers = {name: array for name, array in drawn.items() if array.dtype.kind == "i"}
    if not integers:
        return []
    samples = []
    for label, step in (("smallest id", 1), ("largest id", -1)):
        arrays = {name: array.copy() for name, array in drawn.items()}
        for name, array in integers.items():
            # An input that is all padding is not an input.
            ids = np.unique(array[array != 0] if model.config.pads else array)[::step]
            for item in range(len(LEVELS)):
                arrays[name][1 + item] = ids[item % len(ids)]
        samples.append(Sample(label, arrays))
    return samples


def _with(
    model: Family, seed: int, values: Sequence[float], everywhere: bool = True
) -> dict[str, Array] | None:
    arrays = model.example(len(values) + 2, np.random.default_rng(seed))
    # The first cache of a language model is empty.
    floating = [array for array in arrays.values() if array.dtype.kind == "f" and array.size]
    for array in floating:
        for item, value in enumerate(values, start=1):
            if everywhere:
                array[item] = value
            else:
                array[item].reshape(-1)[array[item].size // 2] = value
    return arrays if floating else None
