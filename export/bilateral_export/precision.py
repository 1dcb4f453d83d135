"""A model in one of the precisions a graph can have, with float32 islands where they are needed."""

from __future__ import annotations

import torch
from torch import nn

from bilateral_export.metadata import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Positions and bandwidths feed the spatial term, which the operator takes in float32 whatever the
# tokens' type is (op/README.md). The other islands need no exception here: layer norm computes its
# statistics, and the operator its softmax, in float32.
FLOAT32_NAMES = ("positions", "log_bandwidth", "query_features", "key_features")


def to_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model's weights in place, keeping what the spatial kernel needs in float32.

    Args:
        model: Any model of this package.
        dtype: float32, float16, bfloat16, or float64 for the reference (which has no islands).

    Returns:
        The same model.
    """
    islands = {
        name: tensor.detach().clone()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if name.rpartition(".")[2] in FLOAT32_NAMES
    }
    model.to(dtype)
    if dtype != torch.float64:
        for name, tensor in islands.items():
            owner, _, attribute = name.rpartition(".")
            getattr(model.get_submodule(owner), attribute).data = tensor.float()
    return model
