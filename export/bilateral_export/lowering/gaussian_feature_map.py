"""Feature map of a spatial kernel: a few extra features of queries and keys.

The logarithm of a Gaussian with f = 1 / (2 sigma^2) is
    -f |p - p'|^2 = (2 f p).p' + (-f |p|^2).1 + (-f).|p'|^2
The three terms are large and cancel: in float32 the error grows with the square of the distance
from the origin in bandwidths. Therefore positions are centred, and f is split into f = high + low,
each with its own features. Positions of a grid are multiples of a half. With `high` short enough,
every product and partial sum of the high features is an integer of at most 24 bits in some unit, so
it is exact in float32; the low features are small. These features come before the tokens' own,
because a matrix product adds up in that order.

Prefix tokens, whose pairs get a logit of 0, have zeros in every feature.
"""

from __future__ import annotations

import numpy as np

from bilateral_export.lowering.attention_pattern import AttentionPattern, Values

_MANTISSA_BITS = 24


def spatial_feature_map(pattern: AttentionPattern) -> tuple[Values, Values]:
    """Compute features whose dot products are the spatial kernel's logits.

    Returns:
        For queries and keys, `[N, H, E]` each; E is 0 without a spatial kernel.
    """
    if pattern.positions is None:
        nothing = np.zeros((1, pattern.heads, 0))
        return nothing, nothing
    queries, keys = pattern.positions
    if pattern.spatial_kernel == "dot":
        features = queries.transpose(1, 0, 2).copy(), keys.transpose(1, 0, 2).copy()
    else:
        assert pattern.bandwidth is not None
        features = _gaussian_features(queries, keys, pattern.key_prefix, pattern.bandwidth)
    features[0][: pattern.query_prefix] = 0.0
    features[1][: pattern.key_prefix] = 0.0
    return features


def _gaussian_features(
    queries: Values, keys: Values, prefix: int, bandwidth: Values
) -> tuple[Values, Values]:
    centre = _centre(keys[prefix:])
    p, other = queries - centre, keys - centre
    factor = 0.5 / np.square(bandwidth)
    high = _shortened(factor, max(np.abs(p).max(), np.abs(other).max()), p.shape[-1])
    one_side, other_side = [], []
    for part in (high, factor - high):
        f = np.broadcast_to(part[None, :, None], (len(p), len(part), 1))
        square = np.square(p).sum(-1)[:, None, None]
        one_side += [2 * f * p[:, None, :], -f * square, -f]
        shape = (len(other), len(part))
        other_square = np.square(other).sum(-1)
        other_side += [
            np.broadcast_to(other[:, None, :], (*shape, other.shape[-1])),
            np.ones((*shape, 1)),
            np.broadcast_to(other_square[:, None, None], (*shape, 1)),
        ]
    return np.concatenate(one_side, axis=-1), np.concatenate(other_side, axis=-1)


def _centre(placed: Values) -> Values:
    """Return the middle of the positions' range, rounded so that a grid stays on halves."""
    middle = (placed.min(axis=0) + placed.max(axis=0)) / 2
    return np.asarray(np.round(2 * middle) / 2)


def _shortened(factor: Values, extent: float, coordinates: int) -> Values:
    """Cut each factor to so few bits that sums of its features on a half grid are exact."""
    # In units of a quarter of the factor's last bit, no partial sum is larger than this.
    largest = 4 * 4 * coordinates * max(extent, 0.5) ** 2
    bits = max(1, _MANTISSA_BITS - int(np.ceil(np.log2(largest))))
    mantissa, exponent = np.frexp(factor)
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits))
