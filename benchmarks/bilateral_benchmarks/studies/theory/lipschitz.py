"""Lipschitz estimates of the softmax by the number of logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
STEP = 1e-4
Vector = NDArray[np.float64]


class Fit(BaseModel):
    """Least squares of `a / sqrt(N) + b`, and the slope of the same points on logarithmic axes.

    Attributes:
        a: Coefficient of 1 / sqrt(N).
        b: What is left as N grows.
        r2: Share of the variance that the fit explains.
        exponent: Slope of log(value) against log(N): -1/2 where b is 0 and the fit is right.
    """

    model_config = ConfigDict(frozen=True)

    a: float
    b: float
    r2: float
    exponent: float


class Lipschitz(BaseModel):
    """Estimates of the softmax's Lipschitz constant by number of logits N.

    Attributes:
        sizes: The N.
        sup_norm: Change of the weights (2-norm) per change of the logits (sup-norm), the mean over
            random logits and random signs: each logit is off by as much as any other.
        two_norm: The same perturbations, measured by their 2-norm.
        spectral: Largest singular value of the Jacobian at random logits, mean: the local Lipschitz
            constant from 2-norm to 2-norm.
        worst: The same at two equal logits far above all others.
        fits: Of the first three, by name.
    """

    model_config = ConfigDict(frozen=True)

    sizes: tuple[int, ...]
    sup_norm: tuple[float, ...]
    two_norm: tuple[float, ...]
    spectral: tuple[float, ...]
    worst: tuple[float, ...]
    fits: dict[str, Fit]


def softmax_lipschitz(
    sizes: Sequence[int] = SIZES, *, trials: int = 200, spread: float = 1.0, seed: int = 0
) -> Lipschitz:
    """Estimate the softmax's Lipschitz constant at logits drawn from N(0, spread^2).

    Args:
        sizes: Numbers of logits.
        trials: Random logits for each.
        spread: Their standard deviation; `q.k / sqrt(D)` of standard normal tokens has 1.
        seed: Of the generator.
    """
    rng = np.random.default_rng(seed)
    sup_norm, two_norm, spectral, worst = [], [], [], []
    for size in sizes:
        logits = rng.standard_normal((trials, size)) * spread
        signs = rng.choice((-STEP, STEP), size=(trials, size))
        change = np.linalg.norm(softmax(logits + signs) - softmax(logits), axis=-1)
        sup_norm.append(float((change / STEP).mean()))
        two_norm.append(float((change / np.linalg.norm(signs, axis=-1)).mean()))
        spectral.append(float(np.mean([jacobian_norm(softmax(row)) for row in logits])))
        two_leaders = np.full(size, -60.0)
        two_leaders[:2] = 0
        worst.append(jacobian_norm(softmax(two_leaders)))
    values = {"sup_norm": sup_norm, "two_norm": two_norm, "spectral": spectral}
    return Lipschitz(
        sizes=tuple(sizes),
        sup_norm=tuple(sup_norm),
        two_norm=tuple(two_norm),
        spectral=tuple(spectral),
        worst=tuple(worst),
        fits={name: fit(sizes, points) for name, points in values.items()},
    )


def softmax(logits: Vector) -> Vector:
    """Return the softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights: Vector = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return weights


def jacobian_norm(weights: Vector, iterations: int = 100) -> float:
    """Return the largest eigenvalue of `diag(p) - p p^T`, by power iteration."""
    # Starting where the heaviest weight is: the leading eigenvector always has a part there.
    vector = weights - weights.mean()
    vector[weights.argmax()] += 1
    norm = 0.0
    for _ in range(iterations):
        image = weights * vector - weights * (weights @ vector)
        norm = float(np.linalg.norm(image))
        if norm == 0:
            return 0.0
        vector = image / norm
    return norm


def fit(sizes: Sequence[int], values: Sequence[float]) -> Fit:
    """Fit `a / sqrt(N) + b` and a power of N."""
    x, y = 1 / np.sqrt(np.asarray(sizes, dtype=np.float64)), np.asarray(values)
    (a, b), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=-1), y, rcond=None)
    residual = y - (a * x + b)
    r2 = 1 - residual @ residual / ((y - y.mean()) @ (y - y.mean()))
    exponent = np.polyfit(np.log(sizes), np.log(y), 1)[0]
    return Fit(a=float(a), b=float(b), r2=float(r2), exponent=float(exponent))
