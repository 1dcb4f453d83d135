"""Inputs at the edge of what a model can be given: zeros, saturation, NaN and infinity."""

from __future__ import annotations

import numpy as np

from bilateral_export.models.family import Exportable, pads
from bilateral_export.parity.samples import Sample
from bilateral_export.tensors import Array

# Far outside what preprocessing makes, and far inside fp16's largest number.
SATURATED = 100.0


def extreme_samples(model: Exportable, seed: int = 0) -> list[Sample]:
    """Three items each: the second is extreme, the others are as the family draws them.

    Floating-point inputs are set to zero, saturated, and given a NaN or an infinity; token ids are
    set to the smallest and to the largest one that the family draws.

    Args:
        model: The model the inputs are for.
        seed: Of the items beside the extreme one.
    """
    made = {}
    for name, value in (("zeros", 0.0), ("saturated", SATURATED), ("negative", -SATURATED)):
        made[name] = _with(model, seed, value, everywhere=True)
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("minus infinity", -np.inf)):
        made[name] = _with(model, seed, value, everywhere=False)
    return [Sample(name, arrays) for name, arrays in made.items() if arrays is not None]


def token_extremes(model: Exportable, seed: int = 0) -> list[Sample]:
    """The same for token ids: all the same, the smallest and the largest drawn."""
    drawn = model.example(3, np.random.default_rng(seed))
    integers = {name: array for name, array in drawn.items() if array.dtype.kind == "i"}
    if not integers:
        return []
    samples = []
    for label, pick in (("smallest id", np.min), ("largest id", np.max)):
        arrays = {name: array.copy() for name, array in drawn.items()}
        for name, array in integers.items():
            # An input that is all padding is no input.
            arrays[name][1] = pick(array[array != 0] if pads(model) else array)
        samples.append(Sample(label, arrays))
    return samples


def _with(model: Exportable, seed: int, value: float, everywhere: bool) -> dict[str, Array] | None:
    arrays = model.example(3, np.random.default_rng(seed))
    floating = [array for array in arrays.values() if array.dtype.kind == "f"]
    for array in floating:
        if everywhere:
            array[1] = value
        else:
            array[1].reshape(-1)[array[1].size // 2] = value
    return arrays if floating else None
