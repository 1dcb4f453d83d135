"""Flash attention by augmented queries and keys: plain attention on a few more features.

ONNX Runtime's CPU provider runs `com.microsoft.MultiHeadAttention` block by block, with memory
linear in N, only without bias and mask. Bilateral attention can be written that way exactly. The
spatial kernel is a dot product of extra features (gaussian_feature_map.py), which are constant and
so go into the projection's weight and bias. The Gaussian range kernel's |k|^2 is one more feature
of the keys, against a feature that is 1.

What is constant along the keys cancels in the softmax. So queries and keys may be shifted by any
vector per head (for the Gaussian kernel both, for the dot product the keys). They are shifted by
the keys' bias, which makes |k|^2, and with it rounding, smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bilateral_export.lowering.attention_pattern import AttentionPattern, Values
from bilateral_export.lowering.gaussian_feature_map import spatial_feature_map
from bilateral_export.lowering.graph_edit import Rewriter

DOMAIN = "com.microsoft"
OPERATOR = "MultiHeadAttention"


@dataclass(frozen=True)
class Operands:
    """Names of an attention's queries, keys and values, `[B, N, H width]`, of the flash form.

    Attributes:
        query: By head: spatial features, the query times the scale, and 1 for a Gaussian.
        key: By head: spatial features, the key, and -scale/2 |k|^2 for a Gaussian.
        value: As they are.
        heads: H.
        features: How many spatial features.
    """

    query: str
    key: str
    value: str
    heads: int
    features: int


def rewrite_to_flash(model: onnx.ModelProto, pattern: AttentionPattern) -> None:
    """Rewrite one attention to the augmented form, in place.

    Requires: `read_attention` accepted the node (constant positions, no causal mask, no key bias).
    Ensures: one MultiHeadAttention with three inputs computes the attention's output.
    """
    rewriter = Rewriter(model, pattern)
    finish_flash(model, rewriter, pattern, augmented(rewriter, pattern))


def finish_flash(
    model: onnx.ModelProto, rewriter: Rewriter, pattern: AttentionPattern, operands: Operands
) -> None:
    """Add the attention of augmented operands, and replace the nodes, in place."""
    attend(rewriter, operands, outputs=[pattern.merged])
    rewriter.finish()
    require_domain(model)


def attend(rewriter: Rewriter, operands: Operands, name: str = "attention", **options: Any) -> str:
    """Add the attention of augmented operands and return its output, `[B, N, H D]`."""
    inputs = [operands.query, operands.key, operands.value]
    return rewriter.node(
        OPERATOR, inputs, name, domain=DOMAIN, num_heads=operands.heads, scale=1.0, **options
    )


def require_domain(model: onnx.ModelProto) -> None:
    """Import the domain of the attention's operator, in place."""
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def augmented(rewriter: Rewriter, pattern: AttentionPattern) -> Operands:
    """Add the projection with the spatial features and return its parts."""
    heads, depth = pattern.heads, pattern.head_dim
    gaussian = pattern.range_kernel == "gaussian"
    query_features, key_features = spatial_feature_map(pattern)
    extra = query_features.shape[-1]
    weights = np.split(pattern.weight, 3, axis=1)
    biases = [part.reshape(heads, depth) for part in np.split(pattern.bias, 3)]
    query_bias = pattern.scale * (biases[0] - biases[1] if gaussian else biases[0])
    # The Gaussian range kernel's feature is computed, so the keys' features are joined to it later.
    folded_keys = np.zeros((*key_features.shape[:2], 0)) if gaussian else key_features
    weight = np.concatenate(
        [
            widen(pattern.scale * weights[0], heads, extra, int(gaussian)),
            widen(weights[1], heads, folded_keys.shape[-1]),
            weights[2],
        ],
        axis=1,
    )
    length = max(query_features.shape[0], folded_keys.shape[0])
    bias = np.concatenate(
        [
            _beside(query_features, query_bias, length, int(gaussian)),
            _beside(folded_keys, np.zeros_like(biases[1]), length),
            np.broadcast_to(biases[2].reshape(1, -1), (length, heads * depth)),
        ],
        axis=1,
    )
    widths = (extra + depth + gaussian, folded_keys.shape[-1] + depth, depth)
    query, key, value = rewriter.projected(
        weight, "columns", bias, [heads * width for width in widths]
    )
    if gaussian:
        columns = rewriter.constant("key_columns", key_features) if extra else ""
        key = gaussian_keys(rewriter, key, columns, extra, pattern)
    return Operands(query, key, value, heads, extra)


def gaussian_keys(
    rewriter: Rewriter, key: str, features: str, extra: int, pattern: AttentionPattern
) -> str:
    """Join, by head, spatial features, the keys `[B, N, H D]` and -scale/2 |k|^2.

    Args:
        rewriter: Of the attention.
        key: Name of the keys.
        features: Name of the features `[N, H, extra]`; not read where there are none.
        extra: Number of features.
        pattern: The attention.
    """
    heads, depth = pattern.heads, pattern.head_dim
    tokens = rewriter.node(
        "Reshape", [key, rewriter.shape("by_head", [0, 0, heads, depth])], "key_by_head"
    )
    last = rewriter.constant("last_axis", np.array([-1]))
    square = rewriter.node("ReduceSumSquare", [tokens, last], "key_square", keepdims=1)
    half = rewriter.constant("minus_half_scale", np.array(-0.5 * pattern.scale))
    parts = [tokens, rewriter.node("Mul", [square, half], "key_column")]
    if extra:
        # Zero times the square has the batch that the constant features lack.
        none = rewriter.node("Mul", [square, rewriter.constant("zero", np.zeros(()))], "no_column")
        parts.insert(0, rewriter.node("Add", [none, features], "spatial_columns"))
    joined = rewriter.node("Concat", parts, "key_joined", axis=3)
    flat = rewriter.shape("flat", [0, 0, heads * (extra + depth + 1)])
    return rewriter.node("Reshape", [joined, flat], "key_augmented")


def widen(weight: Values, heads: int, before: int, behind: int = 0) -> Values:
    """Pad `[dim, H D]` with zeros to `[dim, H (before + D + behind)]`."""
    by_head = weight.reshape(weight.shape[0], heads, -1)
    return np.pad(by_head, ((0, 0), (0, 0), (before, behind))).reshape(weight.shape[0], -1)


def _beside(features: Values, bias: Values, length: int, ones: int = 0) -> Values:
    """Join, by head, features `[N, H, E]`, a bias `[H, D]` for every token, and ones."""
    heads, depth = bias.shape
    parts = [
        np.broadcast_to(features, (length, *features.shape[1:])),
        np.broadcast_to(bias, (length, heads, depth)),
        np.ones((length, heads, ones)),
    ]
    return np.asarray(np.concatenate(parts, axis=-1).reshape(length, -1))
