"""Inputs to compare runners on: random and real, at the corners of batch size and length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product, repeat
from pathlib import Path

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.models.family import Exportable
from bilateral_export.tensors import Array, TensorSpec

BATCH = "batch"
DEFAULT_BATCHES = (1, 2, 7)
DEFAULT_ITEMS = 32


@dataclass(frozen=True)
class Sample:
    """One batch of inputs, by name, and where it came from."""

    origin: str
    arrays: dict[str, Array]

    @property
    def items(self) -> int:
        """Its batch size."""
        return len(next(iter(self.arrays.values())))


def random_samples(
    model: Exportable,
    batches: Sequence[int] = DEFAULT_BATCHES,
    lengths: Mapping[str, Sequence[int]] | None = None,
    items: int = DEFAULT_ITEMS,
    seed: int = 0,
) -> list[Sample]:
    """Random inputs as the model's family draws them (`Exportable.example`).

    Every batch size meets every length once; then the largest batch size is repeated until there
    are enough items for the confidence a verdict needs.

    Args:
        model: The model that the inputs are for.
        batches: Batch sizes, such as the corners of a TensorRT profile.
        lengths: Sizes to visit of each other dynamic dimension, by its name; one that is left out
            is always as long as the model allows.
        items: How many items there are at least.
        seed: Of the generator; the same seed gives the same arrays.
    """
    generator = np.random.default_rng(seed)
    combinations = list(_corners(lengths or {}))
    samples = []
    for number, (batch, dims) in enumerate(_plan(batches, combinations, items)):
        sizes = "".join(f", {name} {size}" for name, size in dims.items())
        samples.append(
            Sample(
                f"random {number}: batch {batch}{sizes}", model.example(batch, generator, **dims)
            )
        )
    return samples


def _corners(lengths: Mapping[str, Sequence[int]]) -> Iterator[dict[str, int]]:
    for sizes in product(*lengths.values()):
        yield dict(zip(lengths, sizes, strict=True))


def _plan(
    batches: Sequence[int], combinations: Sequence[dict[str, int]], items: int
) -> Iterator[tuple[int, dict[str, int]]]:
    drawn = 0
    for batch, dims in product(batches, combinations):
        yield batch, dims
        drawn += batch
    number = 0
    while drawn < items:
        yield max(batches), combinations[number % len(combinations)]
        drawn += max(batches)
        number += 1


def real_samples(
    specs: Sequence[TensorSpec], path: Path, batches: Sequence[int] = DEFAULT_BATCHES
) -> list[Sample]:
    """Preprocessed real inputs out of an `.npz` file with one array per input.

    Args:
        specs: The model's inputs.
        path: The file; each array has the samples along its first axis.
        batches: Batch sizes to cut; the batches follow each other through the file, the largest
            until its end.

    Raises:
        UserError: The file cannot be read, lacks an input, is empty, or has NaN or infinity.
    """
    try:
        with np.load(require_file(path, "inputs"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (TypeError, ValueError, OSError, EOFError) as error:  # TypeError: a lone array
        raise UserError(f"{path} is no .npz file", "Write it with numpy.savez.") from error
    names = [spec.name for spec in specs]
    if missing := [name for name in names if name not in arrays]:
        raise UserError(f"{path} has no array {', '.join(missing)}", f"It has {', '.join(arrays)}.")
    given = {name: np.atleast_1d(arrays[name]) for name in names}
    items = min(map(len, given.values()))
    if not items or any(len(array) != items for array in given.values()):
        raise UserError(f"{path} has no items, or not as many of each input", "Save one per row.")
    if wrong := [n for n, a in given.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]:
        raise UserError(f"{', '.join(wrong)} of {path} has NaN or infinity", "Give finite inputs.")
    samples, start = [], 0
    for batch in chain(batches, repeat(max(batches))):
        if start >= items:
            break
        cut = {name: array[start : start + batch] for name, array in given.items()}
        last = min(start + batch, items) - 1
        samples.append(Sample(f"{path.name}, items {start} to {last}", cut))
        start += batch
    return samples
