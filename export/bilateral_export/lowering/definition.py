"""Reference implementations in float64 or float32, on a few tokens, for the gate."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bilateral_export.lowering.attention_pattern import AttentionPattern
from bilateral_export.lowering.residual_stream import ResidualStream


def attend_queries(
    pattern: AttentionPattern,
    tokens: NDArray[np.generic],
    sampled: NDArray[np.int64],
    dtype: DTypeLike,
) -> NDArray[np.float64]:
    """Compute the attention's output for some queries from the definition (op/README.md).

    Memory is O(queries x N), so that any length can be checked.

    Args:
        pattern: The attention with its projections.
        tokens: `[B, N, dim]`, what the projection gets.
        sampled: Indices of queries.
        dtype: What everything is computed in.

    Returns:
        `[B, queries, dim]`.
    """
    x = tokens.astype(dtype)
    batch, length, _ = x.shape
    projected = x @ pattern.weight.astype(dtype) + pattern.bias.astype(dtype)
    query, key, value = (
        part.reshape(batch, length, pattern.heads, pattern.head_dim).transpose(0, 2, 1, 3)
        for part in np.split(projected, 3, axis=-1)
    )
    query = query[:, :, sampled] * np.asarray(pattern.scale, dtype)
    logits = query @ key.transpose(0, 1, 3, 2)
    if pattern.range_kernel == "gaussian":
        half = np.asarray(-0.5 * pattern.scale, dtype)
        logits = logits + (half * np.square(key).sum(-1))[:, :, None, :]
    if pattern.positions is not None:
        logits = logits + _spatial_logits(pattern, sampled, dtype)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ value).transpose(0, 2, 1, 3)
    return np.asarray(mixed.reshape(batch, len(sampled), -1), dtype=np.float64)


def stream_norms(
    stream: ResidualStream, values: dict[str, NDArray[np.float32]], dtype: DTypeLike
) -> dict[str, NDArray[np.float64]]:
    """Compute the output of every norm that reads a residual stream, term by term.

    Args:
        stream: The stream as it was.
        values: `[B, tokens, ...]` of x0 and of each branch's tokens, by name.
        dtype: What everything is computed in.

    Returns:
        `[B, queries, dim]` by the name of the norm's output.
    """
    terms = {stream.root: values[stream.root].astype(dtype)}
    for branch in stream.branches.values():
        product = values[branch.tokens].astype(dtype) @ branch.weight.astype(dtype)
        terms[branch.name] = product + branch.bias.astype(dtype)
    results = {}
    for norm in stream.norms:
        total = np.zeros_like(terms[stream.root])
        for name, factor in norm.combination.items():
            total += np.asarray(factor, dtype) * terms[name]
        total -= total.mean(axis=-1, keepdims=True)
        variance = np.square(total).mean(axis=-1, keepdims=True)
        total /= np.sqrt(variance + np.asarray(norm.epsilon, dtype))
        result = total * norm.scale.astype(dtype) + norm.bias.astype(dtype)
        results[norm.name] = np.asarray(result, dtype=np.float64)
    return results


def _spatial_logits(
    pattern: AttentionPattern, sampled: NDArray[np.int64], dtype: DTypeLike
) -> NDArray[np.floating[Any]]:
    """Compute the spatial kernel's logits `[H, queries, N]`."""
    assert pattern.positions is not None
    queries, keys = (side.astype(dtype) for side in pattern.positions)
    if pattern.spatial_kernel == "dot":
        logits = queries[:, sampled] @ keys.transpose(0, 2, 1)
    else:
        assert pattern.bandwidth is not None
        sigma = pattern.bandwidth.astype(dtype)[:, None, None]
        distance = np.square(queries[sampled][:, None, :] - keys[None, :, :]).sum(-1)
        logits = np.asarray(-0.5, dtype) * (distance / sigma / sigma)
    logits[:, sampled < pattern.query_prefix] = 0
    logits[:, :, : pattern.key_prefix] = 0
    return np.asarray(logits)
