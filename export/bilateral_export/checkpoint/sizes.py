"""The sizes that weights show by their names and shapes, in the words of a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Size, tensor, axis. The segmenter's encoder has the classifier's names behind "encoder.".
_AXES = (
    ("dim", "norm.weight", 0),
    ("hidden", "blocks.0.mlp.fc1.weight", 0),
    ("heads", "blocks.0.attn.log_bandwidth", 0),
    ("heads", "blocks.0.attn.query_features", 0),
    ("position_features", "blocks.0.attn.query_features", 2),
    ("patch_size", "patch_embed.proj.weight", 2),
    ("channels", "patch_embed.proj.weight", 1),
    ("vocabulary", "token_embed.weight", 0),
    ("length (positions)", "pos_embed", 1),
    ("num_classes", "head.weight", 0),
    ("num_classes", "decoder.cls_emb", 1),
    ("cutoffs (number)", "softmax.clusters.weight", 0),
)
_DEPTHS = {
    "depth": re.compile(r"blocks\.(\d+)\."),
    "decoder_depth": re.compile(r"decoder\.blocks\.(\d+)\."),
}
_SPATIAL = {"log_bandwidth": "gaussian", "query_features": "dot"}


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int | str]:
    """Depth, width, heads, classes, length and the kernels of a model, as far as its weights tell.

    The number of heads leaves a trace only where there is a bandwidth or are features for each.
    """
    tensors = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    found: dict[str, int | str] = {}
    for size, pattern in _DEPTHS.items():
        blocks = [int(match[1]) for match in map(pattern.match, tensors) if match]
        if blocks:
            found[size] = max(blocks) + 1
    for size, name, axis in _AXES:
        if name in tensors and axis < tensors[name].ndim:
            found[size] = tensors[name].shape[axis]
    if "depth" in found:
        kernels = [
            kernel for name, kernel in _SPATIAL.items() if f"blocks.0.attn.{name}" in tensors
        ]
        found["spatial_kernel"] = kernels[0] if kernels else "none"
        found["learned residual"] = "yes" if "blocks.0.residual1.coefficients" in tensors else "no"
        found["distilled"] = "yes" if "dist_token" in tensors else "no"
    return found


def differences(configured: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Each size that the two have differently, with both values.

    Args:
        configured: The tensors of the configuration's model; their values do not matter.
        weights: The tensors of a checkpoint.
    """
    ours, theirs = sizes_of(configured), sizes_of(weights)
    return [
        f"{size} {ours[size]}, the weights have {theirs[size]}"
        for size in ours
        if size in theirs and ours[size] != theirs[size]
    ]
