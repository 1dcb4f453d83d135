"""The Gaussian spatial kernel as a dot product of features: the tensor cores do all of it.

With u = p_i - c and w = p_j - c, c the middle of all positions,

    -|p_i - p_j|^2 / (2 sigma^2) = u.w / sigma^2 - |w|^2 / (2 sigma^2) - |u|^2 / (2 sigma^2)

is a sum of products of one number per query and one per key. A number that type T holds is one
column; any other is split into three of type T whose sum it is to 24 bits or more, and the products
that matter in float32 become columns. Positions on a grid are held by T, so that 3 columns are
enough for a coordinate and 12 for the whole, prefix included; other positions take 6 and 15 (18).
Up to 16 are one step of a 16-bit matrix instruction, where the exact form costs 2 C + 1 operations
for every weight (benchmarks/results/kernel_instructions.md).

The price is cancellation: the error of a logit is at most about 2^-22 (d / sigma)^2, d the diameter
of the positions, where `spatial_kernel="gaussian"` has none. Bandwidth and positions are constants
of a model, so whoever lowers the model can decide (`cheapest_form`); the fused kernel, which sees
them only on the device, cannot.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bilateral_export.op.operands import Operands

# The error of a logit that costs no more than rounding its weight to T does: T's unit roundoff.
# float32 has no room for it.
TOLERANCE = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

# From so many keys on the exact form skips far tiles: finding out which is predicted to cost less
# than 3% there. That gains more where the bandwidth is below this share of the diameter.
SKIP_FROM = 4096
SKIPPING_SHARE = 0.1


def cheapest_form(operands: Operands) -> Operands:
    """Return the operands in the form that the fused kernel computes with fewest instructions.

    A Gaussian spatial kernel becomes features where they are exact enough for T, and where no tiles
    are to be skipped instead; everything else stays as it is. To be called once, on constants.
    """
    query, key, sigma = operands.query_positions, operands.key_positions, operands.bandwidth
    if operands.spatial_kernel != "gaussian" or operands.scale <= 0:
        return operands
    assert query is not None
    assert key is not None
    assert sigma is not None
    dtype, prefix = operands.query.dtype, operands.key_prefix
    share = float(sigma.min()) / max(_diameter(query, key[prefix:]), 1e-30)
    skips = key.shape[0] >= SKIP_FROM and share < SKIPPING_SHARE
    if skips or error_bound(query, key[prefix:], sigma) > TOLERANCE.get(dtype, 0.0):
        return operands
    features = gaussian_features(query, key, sigma, operands.scale, dtype, prefix)
    return replace(
        operands, query_positions=features[0], key_positions=features[1], bandwidth=None,
        spatial_kernel="dot",
    )  # fmt: skip


def error_bound(query_positions: Tensor, key_positions: Tensor, bandwidth: Tensor) -> float:
    """Return the most that `gaussian_features` add to the error of a logit, in any head."""
    diameter = _diameter(query_positions, key_positions)
    return 2.0**-22 * (diameter / float(bandwidth.min())) ** 2


def _diameter(query_positions: Tensor, key_positions: Tensor) -> float:
    """Return the diagonal of the box that holds all positions."""
    everything = torch.cat((query_positions, key_positions)).double()
    return float((everything.amax(0) - everything.amin(0)).norm())


def gaussian_features(
    query_positions: Tensor,
    key_positions: Tensor,
    bandwidth: Tensor,
    scale: float,
    dtype: torch.dtype,
    key_prefix: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return features with which `spatial_kernel="dot"` computes the Gaussian spatial kernel.

    Args:
        query_positions: `[Nq, C]`.
        key_positions: `[Nk, C]`.
        bandwidth: `[H]`, sigma > 0, inf allowed.
        scale: The operator's scale, greater than 0: the kernel divides features by its square root
            before it rounds them, and the split must be of what it rounds.
        dtype: T, float16 or bfloat16.
        key_prefix: Leading keys without position. Where there are none, what is the same for all
            keys is left out.

    Returns:
        Query features `[H, Nq, P]` and key features `[H, Nk, P]`, float32, P a multiple of 8.
    """
    everything = torch.cat((query_positions, key_positions[key_prefix:])).double()
    middle = (everything.amin(0) + everything.amax(0)) / 2
    sigma = bandwidth.double()[:, None, None]
    u = (query_positions.double() - middle).expand(len(bandwidth), -1, -1)  # [H, Nq, C]
    w = (key_positions.double() - middle).expand(len(bandwidth), -1, -1)
    ones_u, ones_w = (torch.ones_like(side[..., 0]) for side in (u, w))
    # Both factors of u.w are about one where positions differ by sigma; a power of two is exact.
    near = torch.where(sigma.isinf(), 1.0, 2.0 ** -torch.log2(sigma).round())
    half_u, half_w = (-0.5 * side.square().sum(-1) / sigma[..., 0] ** 2 for side in (u, w))
    u, w = u * near, w / (near * sigma.square())

    columns = [_product(u[..., axis], w[..., axis], scale, dtype) for axis in range(u.shape[-1])]
    columns.append(_product(ones_u, half_w, scale, dtype))
    if key_prefix:
        columns.append(_product(half_u, ones_w, scale, dtype))
    query, key = (torch.cat(side, -1) for side in zip(*columns, strict=True))
    padding = (0, -query.shape[-1] % 8)
    return torch.nn.functional.pad(query, padding), torch.nn.functional.pad(key, padding)


def _product(query: Tensor, key: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return columns whose products sum to query times key: pairs of parts down to 2^-24."""
    root = scale**0.5
    # A side that T holds is one part, times the power of two nearest to 1/root.
    power = 2.0 ** round(-math.log2(root))
    query_parts: tuple[Tensor, ...]
    key_parts: tuple[Tensor, ...]
    if _held(query, dtype):
        query_parts, key_parts = (query * power,), _parts(key / (scale * power), dtype)
    elif _held(key, dtype):
        query_parts, key_parts = _parts(query / (scale * power), dtype), (key * power,)
    else:
        query_parts, key_parts = _parts(query / root, dtype), _parts(key / root, dtype)
    pairs = [
        (a, b) for i, a in enumerate(query_parts) for j, b in enumerate(key_parts) if i + j <= 2
    ]
    query_columns, key_columns = (torch.stack(side, -1) for side in zip(*pairs, strict=True))
    return (query_columns * root).float(), (key_columns * root).float()


def _held(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a type holds these numbers, with 3 bits of its exponent to spare."""
    return bool((x.to(dtype).double() == x).all() and x.abs().max() * 8 < torch.finfo(dtype).max)


def _parts(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Split x into three numbers of type T, as float64, whose sum it is."""
    high = x.to(dtype).double()
    middle = (x - high).to(dtype).double()
    return high, middle, (x - high - middle).to(dtype).double()
