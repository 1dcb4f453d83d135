"""Perturbation of attention scores, weights and outputs by noise on the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from bilateral_export.models.attention import grid_positions
from bilateral_export.op.attention import spatial_logits

Kernels = Literal["dot", "gaussian", "bilateral"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)
# Squares, so that the tokens lie on a grid.
SIZES = (16, 64, 256, 1024, 2304)
DIM = 32
BANDWIDTH = 1.5


class Perturbation(BaseModel):
    """Means over trials, by number of tokens N, for one choice of kernels.

    Attributes:
        kernels: "dot" and "gaussian" range kernels, "bilateral": Gaussian range and spatial.
        sizes: The N.
        scores: Root mean square change of a score, in logits.
        weights: Total variation distance between a query's weights with and without noise, 0 to 1.
        outputs: Change of the output, relative to the output (Frobenius norms), values noisy too.
    """

    model_config = ConfigDict(frozen=True)

    kernels: Kernels
    sizes: tuple[int, ...]
    scores: tuple[float, ...]
    weights: tuple[float, ...]
    outputs: tuple[float, ...]


def score_perturbation(
    kernels: Kernels,
    sizes: Sequence[int] = SIZES,
    *,
    noise: float = 0.1,
    trials: int = 3,
    seed: int = 0,
) -> Perturbation:
    """Perturb standard normal tokens by `noise` times as much and compare attention, in float64.

    Queries, keys and values are the tokens themselves (identity projections).

    Args:
        kernels: Which attention.
        sizes: Numbers of tokens, squares.
        noise: Standard deviation of the noise; that of the tokens is 1.
        trials: Draws to average over.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for size in sizes:
        draws = [_once(kernels, size, noise, generator) for _ in range(trials)]
        rows.append([sum(column) / trials for column in zip(*draws, strict=True)])
    scores, weights, outputs = zip(*rows, strict=True)
    return Perturbation(
        kernels=kernels, sizes=tuple(sizes), scores=scores, weights=weights, outputs=outputs
    )


def _once(
    kernels: Kernels, size: int, noise: float, generator: torch.Generator
) -> tuple[float, float, float]:
    clean = torch.randn(size, DIM, generator=generator, dtype=torch.float64)
    noisy = clean + noise * torch.randn(size, DIM, generator=generator, dtype=torch.float64)
    before, after = _scores(kernels, clean), _scores(kernels, noisy)
    weights, noisy_weights = before.softmax(-1), after.softmax(-1)
    output, noisy_output = weights @ clean, noisy_weights @ noisy
    return (
        float((after - before).square().mean().sqrt()),
        float((noisy_weights - weights).abs().sum(-1).mean() / 2),
        float((noisy_output - output).norm() / output.norm()),
    )


def _scores(kernels: Kernels, tokens: Tensor) -> Tensor:
    """Return the range logits plus spatial logits `[N, N]`, scale 1 / sqrt(D)."""
    scale = 1 / math.sqrt(tokens.shape[-1])
    if kernels == "dot":
        return scale * tokens @ tokens.T
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    scores = -0.5 * scale * distance.square()
    if kernels == "gaussian":
        return scores
    side = math.isqrt(len(tokens))
    assert side * side == len(tokens), "tokens lie on a square grid"
    places = grid_positions(side, side, prefix=0).double()
    bandwidth = torch.tensor([BANDWIDTH], dtype=torch.float64)
    return scores + spatial_logits(places, places, bandwidth, "gaussian")[0]
