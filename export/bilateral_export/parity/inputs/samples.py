"""Inputs to compare runners on: random and real, at the corners of batch size and length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice, product, repeat
from pathlib import Path

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.models.family import Family
from bilateral_export.parity.measure import NUMBERS
from bilateral_export.tensors import Array, TensorSpec

# One, several, the largest that `bilateral repository add` lets a server make, and one more.
DEFAULT_BATCHES = (1, 2, 8, 9)
DEFAULT_ITEMS = 32
# The array of classes in a file of real inputs.
LABELS = "labels"
# The largest batch that is repeated.
USUAL_BATCH = 8


@dataclass(frozen=True)
class Sample:
    """One batch of inputs, by name, and where it came from.

    Attributes:
        real: Whether they are a user's, not made up.
        labels: Their classes `[items]`, where they are known.
    """

    origin: str
    arrays: dict[str, Array]
    real: bool = False
    labels: Array | None = None

    @property
    def items(self) -> int:
        """Its batch size."""
        return len(next(iter(self.arrays.values())))


def random_samples(
    model: Family,
    batches: Sequence[int] = DEFAULT_BATCHES,
    lengths: Mapping[str, Sequence[int]] | None = None,
    items: int | None = None,
    seed: int = 0,
) -> list[Sample]:
    """Return random inputs as the model's family draws them (`Family.example`).

    Without `lengths`, every batch size and every corner of the other dynamic dimensions
    (`Family.corners`) comes once at least, paired in their order: what is longest comes alone.
    With them, every batch size meets every length. Then usual batches follow until there are enough
    items for the confidence that the budget needs.

    Args:
        model: The model that the inputs are for.
        batches: Batch sizes, such as the corners of a TensorRT profile.
        lengths: Sizes to visit of each other dynamic dimension, by its name; one that is left out
            is as long as the family draws it.
        items: How many items there are at least; None: `enough_items`.
        seed: Of the generator; the same seed gives the same arrays.
    """
    generator = np.random.default_rng(seed)
    wanted = enough_items(model) if items is None else items
    samples = []
    for number, (batch, dims) in enumerate(_plan(model, batches, lengths, wanted)):
        sizes = "".join(f", {name} {size}" for name, size in dims.items())
        samples.append(
            Sample(
                f"random {number}: batch {batch}{sizes}", model.example(batch, generator, **dims)
            )
        )
    return samples


def enough_items(model: Family) -> int:
    """Return the items it takes until every output has `measure.NUMBERS` numbers; at least 32."""
    usual = model.example(1, np.random.default_rng(0), **model.corners()[-1])
    sizes = {
        name: size
        for spec in model.inputs()
        for name, size in zip(spec.shape, usual[spec.name].shape, strict=True)
    }
    numbers = [
        math.prod(size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape[1:])
        for spec in model.outputs()
    ]
    return max(DEFAULT_ITEMS, math.ceil(NUMBERS / max(1, min(numbers))))


def _plan(
    model: Family,
    batches: Sequence[int],
    lengths: Mapping[str, Sequence[int]] | None,
    items: int,
) -> Iterator[tuple[int, dict[str, int]]]:
    if lengths:
        given = [dict(zip(lengths, sizes, strict=True)) for sizes in product(*lengths.values())]
        corners = list(product(batches, given))
        ordinary = [(max(batches), dims) for dims in given]
    else:
        ends = model.corners()
        pairs = zip(cycle(batches), cycle(ends), strict=False)
        corners = list(islice(pairs, max(len(batches), len(ends))))
        usual = max((batch for batch in batches if batch <= USUAL_BATCH), default=max(batches))
        ordinary = [(usual, ends[-1])]
    yield from corners
    drawn = sum(batch for batch, _ in corners)
    for batch, dims in cycle(ordinary):
        if drawn >= items:
            break
        yield batch, dims
        drawn += batch


def real_samples(
    specs: Sequence[TensorSpec], path: Path, batches: Sequence[int] = DEFAULT_BATCHES
) -> list[Sample]:
    """Return preprocessed real inputs out of an `.npz` file with one array per input.

    Args:
        specs: The model's inputs.
        path: The file; each array has the samples along its first axis; of classes, `labels`
            may be one more.
        batches: Batch sizes to cut; the batches follow each other through the file, the largest
            until its end.

    Raises:
        UserError: The file cannot be read, lacks an input, is empty, or has NaN or infinity.
    """
    try:
        with np.load(require_file(path, "inputs"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (TypeError, ValueError, OSError, EOFError) as error:  # TypeError: a lone array
        raise UserError(f"{path} is not an .npz file", "Write it with numpy.savez.") from error
    names = [spec.name for spec in specs]
    if missing := [name for name in names if name not in arrays]:
        raise UserError(f"{path} has no array {', '.join(missing)}", f"It has {', '.join(arrays)}.")
    given = {name: np.atleast_1d(arrays[name]) for name in names}
    items = min(map(len, given.values()))
    if not items or any(len(array) != items for array in given.values()):
        raise UserError(f"{path} has no items, or not as many of each input", "Save one per row.")
    labels = arrays.get(LABELS) if LABELS not in given else None
    if labels is not None and labels.shape != (items,):
        raise UserError(
            f"{path} has {items} items and labels {list(labels.shape)}", "Save one per row."
        )
    if wrong := [n for n, a in given.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]:
        raise UserError(f"{', '.join(wrong)} of {path} has NaN or infinity", "Give finite inputs.")
    samples, start = [], 0
    for batch in chain(batches, repeat(max(batches))):
        if start >= items:
            break
        cut = {name: array[start : start + batch] for name, array in given.items()}
        last = min(start + batch, items) - 1
        classes = None if labels is None else labels[start : start + batch]
        origin = f"{path.name}, items {start} to {last}"
        samples.append(Sample(origin, cut, real=True, labels=classes))
        start += batch
    return samples
