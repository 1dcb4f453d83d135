"""How far an output is from the reference: per item, in units of last place, by direction."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bilateral_export.metadata import Precision
from bilateral_export.precision import DTYPES
from bilateral_export.tensors import Array

Reference = NDArray[np.float64]

# Share of whole-number decisions that may tip with any rounding: scores that are all but equal.
TIES = 1e-3

# Upper edges of the histogram's bins, in units of last place; what is beyond falls in one more bin.
ULP_EDGES = tuple(0.5 * 2.0**power for power in range(0, 28, 3))


def relative_errors(got: Array, reference: Reference) -> Reference:
    """`|got - reference| / |reference|` of each item of the first axis (Euclidean norms).

    NaN or infinity where the reference has none gives infinity, so that it can pass no budget.
    A reference of zeros is compared absolutely.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.asarray(got, dtype=np.float64) - reference
        axes = tuple(range(1, reference.ndim))
        norms = np.sqrt(np.square(reference).sum(axes))
        errors = np.sqrt(np.square(difference).sum(axes)) / np.where(norms > 0, norms, 1.0)
    return np.where(np.isfinite(errors), errors, np.inf)


def item_errors(got: Array, reference: Array) -> Reference:
    """How wrong each item of the first axis is.

    Relative distance where the output is floating; where it is whole numbers (the class of each
    pixel), the share that differs.
    """
    if reference.dtype.kind == "f":
        return relative_errors(got, reference.astype(np.float64))
    differs = np.asarray(got) != reference
    return np.asarray(differs.reshape(len(reference), -1).mean(axis=1))


def error_floor(reference: Array, precision: Precision) -> float:
    """The error that any correct output may have: a quarter of one rounding, or a few ties."""
    if reference.dtype.kind == "f":
        return float(torch.finfo(DTYPES[precision]).eps) / 4
    return TIES


def cosines(got: Array, reference: Array) -> Reference:
    """Cosine of the angle between output and reference, per item of the first axis.

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
    """Distance of each element in units of last place of a precision at the reference.

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
    """Count distances per bin of `ULP_EDGES`, and beyond the last edge."""
    bins = np.searchsorted(ULP_EDGES, distances.ravel())
    counts = np.bincount(bins, minlength=len(ULP_EDGES) + 1)
    return tuple(int(count) for count in counts)
