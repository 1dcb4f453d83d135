"""The Gaussian spatial kernel as a dot product of features: the tensor cores do all of it.

With u = p_i - c and w = p_j - c, c the middle of all positions,

    -|p_i - p_j|^2 / (2 sigma^2) = u.w / sigma^2 - |w|^2 / (2 sigma^2) - |u|^2 / (2 sigma^2)

is a sum of products of one number per query and one per key. Each number is split into three of
type T whose sum it is to 24 bits or more, and the products that matter in float32 become columns:
15 for two coordinates, which is one step of a 16-bit matrix instruction, where the exact form costs
six operations for every weight (`python -m bilateral_benchmarks.kernel_instructions`).

The price is cancellation: the error of a logit is at most about 2^-22 (d / sigma)^2, d the diameter
of the positions, where `spatial_kernel="gaussian"` has none. Bandwidth and positions are constants
of a model, so whoever lowers the model can decide; the fused kernel, which sees them only on the
device, cannot.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_features(
    query_positions: Tensor,
    key_positions: Tensor,
    bandwidth: Tensor,
    scale: float,
    dtype: torch.dtype,
    key_prefix: int = 0,
) -> tuple[Tensor, Tensor]:
    """Features that make `spatial_kernel="dot"` compute the Gaussian spatial kernel.

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
    heads = bandwidth.shape[0]
    everything = torch.cat((query_positions, key_positions[key_prefix:])).double()
    middle = (everything.amin(0) + everything.amax(0)) / 2
    sigma = bandwidth.double()[:, None, None]
    u = (query_positions.double() - middle) / sigma  # [H, Nq, C]
    w = (key_positions.double() - middle) / sigma
    ones_u, ones_w = (torch.ones(heads, x.shape[1], dtype=torch.float64) for x in (u, w))

    columns = [_product(u[..., axis], w[..., axis], scale, dtype) for axis in range(u.shape[-1])]
    columns.append(_product(ones_u, -w.square().sum(-1) / 2, scale, dtype, exact_query=True))
    if key_prefix:
        columns.append(_product(-u.square().sum(-1) / 2, ones_w, scale, dtype, exact_key=True))
    query, key = (torch.cat(side, -1) for side in zip(*columns, strict=True))
    padding = (0, -query.shape[-1] % 8)
    return torch.nn.functional.pad(query, padding), torch.nn.functional.pad(key, padding)


def _product(
    query: Tensor,
    key: Tensor,
    scale: float,
    dtype: torch.dtype,
    exact_query: bool = False,
    exact_key: bool = False,
) -> tuple[Tensor, Tensor]:
    """Columns whose products sum to query times key: all pairs of parts down to 2^-24."""
    root = scale**0.5
    # A side of ones is made the nearest power of two to 1/root, which T holds exactly.
    if exact_query or exact_key:
        power = 2.0 ** round(-torch.log2(torch.tensor(root)).item())
        ones = torch.full_like(query if exact_query else key, power)
        parts = _parts((key if exact_query else query) / (scale * power), dtype)
        sides = (torch.stack((ones,) * 3, -1), torch.stack(parts, -1))
        query_columns, key_columns = sides if exact_query else sides[::-1]
    else:
        a, b = _parts(query / root, dtype), _parts(key / root, dtype)
        pairs = [(i, j) for i in range(3) for j in range(3) if i + j <= 2]
        query_columns = torch.stack([a[i] for i, _ in pairs], -1)
        key_columns = torch.stack([b[j] for _, j in pairs], -1)
    return (query_columns * root).float(), (key_columns * root).float()


def _parts(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers of type T whose sum is x, as float64."""
    high = x.to(dtype).double()
    middle = (x - high).to(dtype).double()
    return high, middle, (x - high - middle).to(dtype).double()
