"""Error measures: relative per item, in units in the last place, by cosine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bilateral_export.metadata import Precision
from bilateral_export.precision import DTYPES
from bilateral_export.tensors import Array

Reference = NDArray[np.float64]

# Share of whole-number decisions that may tip with any rounding: scores that are all but equal.
TIES = 1e-3

# An error has as many numbers behind it at least: the error of a single one is luck, and relative
# to a number near 0 it is anything. Items of fewer numbers are pooled. NUMBERS is how many it takes
# in all: with fewer, the interval of the typical ratio fails correct runtimes.
POOLED_NUMBERS = 8
NUMBERS = 128

# Upper edges of the histogram's bins, in units of last place; what is beyond falls in one more bin.
ULP_EDGES = tuple(0.5 * 2.0**power for power in range(0, 28, 3))


def relative_errors(got: Array, reference: Reference, size: float = 0.0) -> Reference:
    """Return `|got - reference| / |reference|` of each item of the first axis (Euclidean norms).

    NaN or infinity where the reference has none gives infinity, so that it can pass no budget.
    A reference of zeros is compared absolutely.

    Args:
        got: The items judged.
        reference: What they are compared with.
        size: What the numbers of a reference count as at least, from `magnitude`.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.asarray(got, dtype=np.float64) - reference
        axes = tuple(range(1, reference.ndim))
        least = size * math.sqrt(math.prod(reference.shape[1:]))
        norms = np.maximum(np.sqrt(np.square(reference).sum(axes)), least)
        errors = np.sqrt(np.square(difference).sum(axes)) / np.where(norms > 0, norms, 1.0)
    return np.where(np.isfinite(errors), errors, np.inf)


def item_errors(got: Array, reference: Array, size: float = 0.0) -> Reference:
    """Return the error of each item of the first axis.

    Relative distance where the output is floating, as in `relative_errors`; where it is whole
    numbers (the class of each pixel), the share that differs.
    """
    if reference.dtype.kind == "f":
        return relative_errors(got, reference.astype(np.float64), size)
    differs = np.asarray(got) != reference
    return np.asarray(differs.reshape(len(reference), -1).mean(axis=1))


def magnitude(reference: Sequence[Array]) -> float:
    """Return the root mean square of an output's numbers, all samples together; of whole numbers 0.

    A number near 0 has no relative error: an item's norm counts as that of numbers of this size at
    least, wherever a single item is judged.
    """
    if reference[0].dtype.kind != "f":
        return 0.0
    squares = sum(float(np.square(array).sum()) for array in reference)
    return math.sqrt(squares / max(sum(array.size for array in reference), 1))


def pooled_errors(
    outputs: Sequence[Array], reference: Sequence[Array]
) -> tuple[Reference, NDArray[np.intp]]:
    """Return errors of `POOLED_NUMBERS` each: neighbouring items of few numbers count as one.

    An item that is large enough stays alone, and its error is that of `item_errors`; so do a few
    small ones that are too few for a pool.

    Args:
        outputs: What is judged, one array per sample.
        reference: The same of the reference.

    Returns:
        The error of each pool, and the number of the item in it that is furthest off.
    """
    pairs = list(zip(outputs, reference, strict=True))
    norms = np.concatenate([_norms(true) for true in reference])
    errors = np.concatenate([item_errors(mine, true) for mine, true in pairs])
    distances = errors * np.where(norms > 0, norms, 1.0)
    sizes = [int(true[0].size) for true in reference for _ in true]
    pools: list[NDArray[np.intp]] = []
    start = 0
    for size, run in itertools.groupby(sizes):
        length = len(list(run))
        wanted = math.ceil(POOLED_NUMBERS / max(size, 1))
        items = np.arange(start, start + length)
        pools += np.split(items, np.arange(wanted, length - wanted + 1, wanted))
        start += length
    whole = np.array([np.linalg.norm(norms[items]) or 1.0 for items in pools])
    with np.errstate(invalid="ignore"):
        pooled = np.array([np.linalg.norm(distances[items]) for items in pools]) / whole
    return pooled, np.array([items[distances[items].argmax()] for items in pools])


def _norms(reference: Array) -> Reference:
    """Return the norm of each item of the first axis; integers have none."""
    if reference.dtype.kind != "f":
        return np.ones(len(reference))
    return np.asarray(np.linalg.norm(reference.reshape(len(reference), -1), axis=1))


def error_floor(reference: Array, precision: Precision) -> float:
    """Return the error of any correct output: a quarter of one rounding, or a few ties."""
    if reference.dtype.kind == "f":
        return float(torch.finfo(DTYPES[precision]).eps) / 4
    return TIES


def cosines(got: Array, reference: Array) -> Reference:
    """Return the cosine of the angle between output and reference, per item of the first axis.

    NaN or infinity gives -1; two zero vectors count as parallel.
    """
    wide, true = (np.asarray(array, dtype=np.float64) for array in (got, reference))
    axes = tuple(range(1, reference.ndim))
    with np.errstate(invalid="ignore", over="ignore"):
        product = (wide * true).sum(axes)
        norms = np.sqrt(np.square(wide).sum(axes) * np.square(true).sum(axes))
        cosine = np.where(norms == 0, 1.0, product / np.where(norms == 0, 1.0, norms))
    return np.where(np.isfinite(cosine), cosine, -1.0)


def ulps(got: Array, reference: Array, precision: Precision) -> Reference:
    """Return each element's distance in units in the last place of the reference's precision.

    The unit of last place of `x = m * 2^e`, `1 <= m < 2`, is `eps * 2^e`, with the type's epsilon;
    below the smallest normal number it is that of the smallest normal number. The model's outputs
    are sums of many rounded terms, so that values near zero are many units away in any correct
    implementation: read the histogram beside the one of eager PyTorch. Whole numbers have none.
    """
    if reference.dtype.kind != "f":
        return np.zeros(0)
    kind = torch.finfo(DTYPES[precision])
    true = reference.astype(np.float64)
    _, exponent = np.frexp(np.maximum(np.abs(true), kind.tiny))
    unit = np.ldexp(kind.eps, exponent - 1)
    with np.errstate(invalid="ignore"):
        distance = np.abs(np.asarray(got, dtype=np.float64) - true) / unit
    return np.where(np.isnan(distance), np.inf, distance)


def ulp_histogram(distances: Reference) -> tuple[int, ...]:
    """Return the count of distances per bin of `ULP_EDGES`, and beyond the last edge."""
    bins = np.searchsorted(ULP_EDGES, distances.ravel())
    counts = np.bincount(bins, minlength=len(ULP_EDGES) + 1)
    return tuple(int(count) for count in counts)
