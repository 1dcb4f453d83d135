"""Attention with a materialised mask: the spatial kernel's logits as one constant `[H, N, N]`.

For short sequences no form is faster, and it rounds like the operator's own body. Its memory grows
with N^2, so it is refused for long ones.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from bilateral_export.lowering.attention_pattern import AttentionPattern, PreconditionError, Values
from bilateral_export.lowering.graph_edit import Rewriter

MAX_BYTES = 32 << 20
DISTANCES = "free_grid.distances"


def rewrite_to_mask(model: onnx.ModelProto, pattern: AttentionPattern) -> None:
    """Rewrite one attention to MatMul, Add, Softmax, MatMul with a constant bias, in place.

    Requires: `read_attention` accepted the node.
    Ensures: no operator node is left of this attention, and its mask has at most MAX_BYTES.

    Raises:
        PreconditionError: The constant would be larger, or the range kernel grows with distance.
    """
    heads, depth = pattern.heads, pattern.head_dim
    rewriter = Rewriter(model, pattern)
    weights, biases = np.split(pattern.weight, 3, axis=1), np.split(pattern.bias, 3)
    gaussian = pattern.range_kernel == "gaussian"
    if gaussian and pattern.scale <= 0:
        raise PreconditionError(f"its scale is {pattern.scale}")
    # With keys scaled by the root of scale / 2, their squares are the logits' key term as they are.
    of_keys = math.sqrt(pattern.scale / 2) if gaussian else 1.0
    of_queries = pattern.scale / of_keys
    # A shift of queries and keys by the same vector leaves their distances as they are, and what
    # is left of the dot product's key bias is constant along the keys: see attention_flash.py.
    biases[0] = of_queries * (biases[0] - biases[1] if gaussian else biases[0])
    biases[1] = np.zeros_like(biases[1])
    weight = np.concatenate([of_queries * weights[0], of_keys * weights[1], weights[2]], axis=1)
    parts = rewriter.projected(weight, "bias", np.concatenate(biases), [heads * depth] * 3)
    by_head = rewriter.shape("by_head", [0, 0, heads, depth])
    query, key, value = (
        rewriter.node("Reshape", [part, by_head], f"{name}_by_head")
        for part, name in zip(parts, ("query", "key", "value"), strict=True)
    )
    query = rewriter.node("Transpose", [query], "query", perm=[0, 2, 1, 3])
    columns = rewriter.node("Transpose", [key], "key", perm=[0, 2, 3, 1])
    value = rewriter.node("Transpose", [value], "value", perm=[0, 2, 1, 3])
    logits = rewriter.node("MatMul", [query, columns], "logits")
    if gaussian:
        axis = rewriter.constant("depth_axis", np.array([2]))
        square = rewriter.node("ReduceSumSquare", [columns, axis], "key_square", keepdims=1)
        logits = rewriter.node("Sub", [logits, square], "range_logits")
    if pattern.positions is not None:
        mask = rewriter.constant("spatial", spatial_mask(pattern)[None])
        logits = rewriter.node("Add", [logits, mask], "all_logits")
    elif pattern.computed is not None:
        mask = _computed_mask(model, rewriter, pattern)
        logits = rewriter.node("Add", [logits, mask], "all_logits")
    weights_name = rewriter.node("Softmax", [logits], "weights", axis=-1)
    mixed = rewriter.node("MatMul", [weights_name, value], "mixed")
    back = rewriter.node("Transpose", [mixed], "heads_last", perm=[0, 2, 1, 3])
    flat = rewriter.shape("flat", [0, 0, heads * depth])
    rewriter.node("Reshape", [back, flat], "merged", outputs=[pattern.merged])
    rewriter.finish()


def spatial_mask(pattern: AttentionPattern) -> Values:
    """The spatial kernel's logits `[H, N, N]`, prefix tokens exempt.

    Raises:
        PreconditionError: As float32 they would take more than MAX_BYTES.
    """
    assert pattern.positions is not None
    queries, keys = pattern.positions
    size = 4 * pattern.heads * queries.shape[-2] * keys.shape[-2]
    if size > MAX_BYTES:
        raise PreconditionError(f"its mask would take {size >> 20} MiB")
    if pattern.spatial_kernel == "dot":
        mask = queries @ keys.transpose(0, 2, 1)
    else:
        assert pattern.bandwidth is not None
        distance = np.square(queries[:, None, :] - keys[None, :, :]).sum(-1)
        mask = -0.5 * distance / np.square(pattern.bandwidth)[:, None, None]
    mask[:, : pattern.query_prefix] = 0.0
    mask[:, :, : pattern.key_prefix] = 0.0
    return mask


def _computed_mask(model: onnx.ModelProto, rewriter: Rewriter, pattern: AttentionPattern) -> str:
    """Add the spatial kernel's logits `[H, N, N]` of positions that the graph computes.

    Their squared distances are computed once for all attentions.

    Raises:
        PreconditionError: At the largest size they would take more than MAX_BYTES.
    """
    assert pattern.bandwidth is not None
    size = 4 * pattern.heads * (pattern.longest or 0) ** 2
    if pattern.longest is None or size > MAX_BYTES:
        raise PreconditionError(f"its mask would take {size >> 20} MiB at the largest size")
    if not any(DISTANCES in node.output for node in model.graph.node):
        _add_distances(rewriter, pattern)
    factor = rewriter.constant("factor", -0.5 / np.square(pattern.bandwidth)[:, None, None])
    return rewriter.node("Mul", [DISTANCES, factor], "spatial")


def _add_distances(rewriter: Rewriter, pattern: AttentionPattern) -> None:
    """Add the squared distances `[N, N]` of all tokens, 0 where one has no position."""
    assert pattern.computed is not None
    prefix = pattern.key_prefix
    ends = [rewriter.shape(name, [at]) for name, at in (("first", prefix), ("end", 2**62))]
    axis = rewriter.shape("token_axis", [0])
    placed = rewriter.node("Slice", [pattern.computed, *ends, axis], "placed")
    sides = [f"{pattern.node.name}.coordinate_{number}" for number in range(2)]
    one_each = rewriter.shape("one_each", [1, 1])
    rewriter.node("Split", [placed, one_each], "coordinates", outputs=sides, axis=1)
    squares = []
    for number, side in enumerate(sides):
        row = rewriter.node("Transpose", [side], f"row_{number}", perm=[1, 0])
        apart = rewriter.node("Sub", [side, row], f"apart_{number}")
        squares.append(rewriter.node("Mul", [apart, apart], f"square_{number}"))
    total = rewriter.node("Add", squares, "distance")
    pads = rewriter.shape("pads", [prefix, prefix, 0, 0])
    rewriter.node("Pad", [total, pads], "distances", outputs=[DISTANCES])
