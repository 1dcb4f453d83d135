"""Inputs to compare runners on: random and real, at several batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.tensors import Array, TensorSpec

DEFAULT_BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Sample:
    """One batch of inputs, by name, and where it came from."""

    origin: str
    arrays: dict[str, Array]


def random_samples(
    specs: Sequence[TensorSpec], batches: Sequence[int] = DEFAULT_BATCHES, seed: int = 0
) -> list[Sample]:
    """Standard normal floats (what normalised images look like), one sample per batch size.

    Args:
        specs: The model's inputs, floating-point.
        batches: The batch sizes.
        seed: Of the generator; the same seed gives the same arrays.
    """
    generator = np.random.default_rng(seed)
    return [
        Sample(
            origin=f"random, batch {batch}",
            arrays={
                spec.name: generator.standard_normal(spec.with_batch(batch)).astype(spec.dtype)
                for spec in specs
            },
        )
        for batch in batches
    ]


def real_samples(
    specs: Sequence[TensorSpec], path: Path, batches: Sequence[int] = DEFAULT_BATCHES
) -> list[Sample]:
    """Preprocessed real inputs out of an `.npz` file with one array per input.

    Args:
        specs: The model's inputs.
        path: The file; each array has the samples along its first axis.
        batches: Batch sizes to cut; the batches follow each other through the file.

    Raises:
        UserError: The file cannot be read, lacks an input, or an input does not fit.
    """
    try:
        with np.load(require_file(path, "inputs"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is no .npz file", "Write it with numpy.savez.") from error
    names = [spec.name for spec in specs]
    if missing := [name for name in names if name not in arrays]:
        raise UserError(f"{path} has no array {', '.join(missing)}", f"It has {', '.join(arrays)}.")
    samples, start = [], 0
    for batch in batches:
        cut = {name: arrays[name][start : start + batch] for name in names}
        if all(len(array) for array in cut.values()):
            samples.append(Sample(f"{path.name}, batch {batch}", cut))
        start += batch
    return samples
