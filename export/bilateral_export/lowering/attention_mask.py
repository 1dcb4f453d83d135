"""The mask form: the spatial kernel's logits as one constant `[H, N, N]`.

For short sequences this is as fast as anything and rounds like the operator's own body; its memory
grows with N^2, so it is refused for long ones.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from bilateral_export.lowering.attention_pattern import PreconditionError, Site, Values
from bilateral_export.lowering.graph_edit import Rewriter

MAX_BYTES = 32 << 20


def fold_mask(model: onnx.ModelProto, site: Site) -> None:
    """Rewrite one site to MatMul, Add, Softmax, MatMul with a constant bias, in place.

    Requires: `read_site` understood the node.
    Ensures: no operator node is left at this site, and its constant has at most MAX_BYTES.

    Raises:
        PreconditionError: The constant would be larger, or the range kernel grows with distance.
    """
    heads, depth = site.heads, site.head_dim
    rewriter = Rewriter(model, site)
    weights, biases = np.split(site.weight, 3, axis=1), np.split(site.bias, 3)
    gaussian = site.range_kernel == "gaussian"
    if gaussian and site.scale <= 0:
        raise PreconditionError(f"its scale is {site.scale}")
    # With keys scaled by the root of scale / 2, their squares are the logits' key term as they are.
    of_keys = math.sqrt(site.scale / 2) if gaussian else 1.0
    of_queries = site.scale / of_keys
    # A shift of queries and keys by the same vector leaves their distances as they are, and what
    # is left of the dot product's key bias is constant along the keys: see augmented.py.
    biases[0] = of_queries * (biases[0] - biases[1] if gaussian else biases[0])
    biases[1] = np.zeros_like(biases[1])
    weight = np.concatenate([of_queries * weights[0], of_keys * weights[1], weights[2]], axis=1)
    product = rewriter.node("MatMul", [site.tokens, rewriter.constant("weight", weight)], "product")
    bias = rewriter.constant("bias", np.concatenate(biases))
    projected = rewriter.node("Add", [product, bias], "projected")
    parts = rewriter.outputs("part", 3)
    rewriter.node(
        "Split",
        [projected, rewriter.constant("sizes", np.full(3, heads * depth))],
        "split",
        outputs=parts,
        axis=2,
    )
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
    if site.positions is not None:
        mask = rewriter.constant("spatial", spatial_mask(site)[None])
        logits = rewriter.node("Add", [logits, mask], "all_logits")
    weights_name = rewriter.node("Softmax", [logits], "weights", axis=-1)
    mixed = rewriter.node("MatMul", [weights_name, value], "mixed")
    back = rewriter.node("Transpose", [mixed], "heads_last", perm=[0, 2, 1, 3])
    flat = rewriter.shape("flat", [0, 0, heads * depth])
    rewriter.node("Reshape", [back, flat], "merged", outputs=[site.merged])
    rewriter.finish()


def spatial_mask(site: Site) -> Values:
    """The spatial kernel's logits `[H, N, N]`, prefix tokens exempt.

    Raises:
        PreconditionError: As float32 they would take more than MAX_BYTES.
    """
    assert site.positions is not None
    queries, keys = site.positions
    size = 4 * site.heads * queries.shape[-2] * keys.shape[-2]
    if size > MAX_BYTES:
        raise PreconditionError(f"its mask would take {size >> 20} MiB")
    if site.spatial_kernel == "dot":
        mask = queries @ keys.transpose(0, 2, 1)
    else:
        assert site.bandwidth is not None
        distance = np.square(queries[:, None, :] - keys[None, :, :]).sum(-1)
        mask = -0.5 * distance / np.square(site.bandwidth)[:, None, None]
    mask[:, : site.query_prefix] = 0.0
    mask[:, :, : site.key_prefix] = 0.0
    return mask
