"""The standard form: ONNX's own Attention operator (opset 23) with the spatial kernel as mask.

No runtime here runs it faster than the others; it is the ablation's third party, and what a runtime
with a fused Attention would want.
"""

from __future__ import annotations

import numpy as np
import onnx

from bilateral_export.lowering.attention_mask import spatial_mask
from bilateral_export.lowering.attention_pattern import PreconditionError, Site
from bilateral_export.lowering.graph_edit import Rewriter

OPSET = 23


def use_attention(model: onnx.ModelProto, site: Site) -> None:
    """Rewrite one site to Attention with a constant mask (plus the keys' term), in place.

    Requires: the model imports opset 23 or later, and `read_site` understood the node.
    Ensures: one Attention node computes the site's output.

    Raises:
        PreconditionError: The opset is older, or the mask would be too large.
    """
    version = next(entry.version for entry in model.opset_import if entry.domain == "")
    if version < OPSET:
        raise PreconditionError(f"it needs opset {OPSET}, and the file has {version}")
    heads, depth = site.heads, site.head_dim
    rewriter = Rewriter(model, site)
    product = rewriter.node(
        "MatMul", [site.tokens, rewriter.constant("weight", site.weight)], "product"
    )
    projected = rewriter.node("Add", [product, rewriter.constant("bias", site.bias)], "projected")
    parts = rewriter.outputs("part", 3)
    sizes = rewriter.constant("sizes", np.full(3, heads * depth))
    rewriter.node("Split", [projected, sizes], "split", outputs=parts, axis=2)
    by_head = rewriter.shape("by_head", [0, 0, heads, depth])
    query, key, value = (
        rewriter.node(
            "Transpose",
            [rewriter.node("Reshape", [part, by_head], f"{name}_by_head")],
            name,
            perm=[0, 2, 1, 3],
        )
        for part, name in zip(parts, ("query", "key", "value"), strict=True)
    )
    masks = []
    if site.positions is not None:
        masks.append(rewriter.constant("spatial", spatial_mask(site)[None]))
    if site.range_kernel == "gaussian":
        axis = rewriter.constant("depth_axis", np.array([3]))
        square = rewriter.node("ReduceSumSquare", [key, axis], "key_square", keepdims=0)
        half = rewriter.constant("minus_half_scale", np.array(-0.5 * site.scale))
        term = rewriter.node("Mul", [square, half], "key_term")
        row = rewriter.constant("row_axis", np.array([2]))
        masks.append(rewriter.node("Unsqueeze", [term, row], "key_row"))
        if len(masks) == 2:
            masks = [rewriter.node("Add", masks, "mask")]
        else:
            # Attention wants the mask with its query axis at full length.
            raise PreconditionError("its mask would be a row per key only")
    attended = rewriter.node("Attention", [query, key, value, *masks], "attended", scale=site.scale)
    back = rewriter.node("Transpose", [attended], "heads_last", perm=[0, 2, 1, 3])
    flat = rewriter.shape("flat", [0, 0, heads * depth])
    rewriter.node("Reshape", [back, flat], "merged", outputs=[site.merged])
    rewriter.finish()
