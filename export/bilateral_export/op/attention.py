"""The operator's arithmetic in plain PyTorch: the CPU implementation and the autograd fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from bilateral_export.op.contract import RangeKernel, SpatialKernel

# Queries are processed in chunks of at most so many logits, so that memory stays O(Nk) per chunk.
MAX_LOGITS = 1 << 25


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    bandwidth: Tensor | None = None,
    key_bias: Tensor | None = None,
    *,
    scale: float,
    range_kernel: RangeKernel = "dot",
    spatial_kernel: SpatialKernel = "none",
    query_prefix: int = 0,
    key_prefix: int = 0,
    causal: bool = False,
) -> Tensor:
    """Return bilateral attention (op/README.md); the arguments are those of `Operands`.

    Returns:
        `[B, H, Nq, D]` in the query's dtype.
    """
    batch, heads, n_query, _ = query.shape
    n_key = key.shape[2]
    accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32

    column = torch.zeros(batch, 1, 1, n_key, dtype=accumulate, device=query.device)
    if range_kernel == "gaussian":
        # |q|^2 is constant along a row and cancels in the softmax: only |k|^2 is left.
        column = (-0.5 * scale) * key.to(accumulate).square().sum(-1).unsqueeze(2)
    if key_bias is not None:
        column = column + key_bias.to(accumulate)[:, None, None, :]

    def attend(start: int, stop: int) -> Tensor:
        chunk = query[:, :, start:stop] * scale
        logits = (chunk @ key.transpose(-1, -2)).to(accumulate) + column
        if query_positions is not None and key_positions is not None:
            spatial = spatial_logits(
                query_positions[..., start:stop, :], key_positions, bandwidth, spatial_kernel
            ).to(accumulate)
            without_position = torch.zeros(
                stop - start, n_key, dtype=torch.bool, device=query.device
            )
            without_position[: max(query_prefix - start, 0)] = True
            without_position[:, :key_prefix] = True
            logits = logits + spatial.masked_fill(without_position, 0.0)
        if causal:
            row = torch.arange(start, stop, device=query.device)[:, None] + (n_key - n_query)
            future = torch.arange(n_key, device=query.device)[None, :] > row
            logits = logits.masked_fill(future, float("-inf"))
        return logits.softmax(-1).to(value.dtype) @ value

    rows = max(1, MAX_LOGITS // max(1, batch * heads * n_key))
    if rows >= n_query:
        return attend(0, n_query)
    chunks = range(0, n_query, rows)
    return torch.cat([attend(start, min(start + rows, n_query)) for start in chunks], dim=2)


def spatial_logits(
    query_positions: Tensor,
    key_positions: Tensor,
    bandwidth: Tensor | None,
    spatial_kernel: SpatialKernel,
) -> Tensor:
    """Return the log of the spatial kernel, `[H, Nq, Nk]`, prefix tokens not yet exempt.

    Args:
        query_positions: Coordinates `[Nq, C]` or features `[H, Nq, P]`.
        key_positions: Coordinates `[Nk, C]` or features `[H, Nk, P]`.
        bandwidth: `[H]`, for the Gaussian kernel.
        spatial_kernel: "gaussian" or "dot".
    """
    if spatial_kernel == "dot":
        return query_positions @ key_positions.transpose(-1, -2)
    assert bandwidth is not None
    # Coordinates are subtracted before they are squared: |p|^2 - 2 p.p' + |p'|^2 would cancel badly
    # far from the origin. Two divisions: sigma^2 alone could underflow to 0 and give 0/0.
    difference = query_positions[:, None, :] - key_positions[None, :, :]
    sigma = bandwidth[:, None, None]
    return -0.5 * (difference.square().sum(-1) / sigma / sigma)
