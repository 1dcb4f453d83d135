"""Gaussian spatial kernels as features, where that is exact enough and faster.

The fused kernel computes features on the tensor cores (op/kernel/README.md). Positions and
bandwidths are constants of a trained model, so the choice is made once, here, before a model is run
or exported in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bilateral_export.models.attention import BilateralAttention
from bilateral_export.op.kernel.spatial_features import cheapest_form
from bilateral_export.op.operands import Operands


def use_spatial_features(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace the Gaussian spatial kernels of a trained model, in place, by the rule.

    Args:
        model: Any model of this package.
        dtype: Of its tokens, float16 or bfloat16; in float32 nothing is replaced.

    Returns:
        The number of attentions that were replaced.
    """
    return sum(_replace(attention, places, dtype) for attention, places in _gaussian(model))


def _gaussian(model: nn.Module) -> Iterator[tuple[BilateralAttention, Tensor]]:
    """Every attention with a Gaussian spatial kernel, with the positions it is called with.

    Positions belong to the innermost module around it that has some.
    """
    owners = {name: places for name, places in model.named_buffers() if _is_positions(name)}
    for name, module in model.named_modules():
        if isinstance(module, BilateralAttention) and module.config.spatial_kernel == "gaussian":
            around = [owner for owner in owners if name.startswith(owner[: -len("positions")])]
            if around:
                yield module, owners[max(around, key=len)]


def _is_positions(name: str) -> bool:
    return name.rpartition(".")[2] == "positions"


def _replace(attention: BilateralAttention, positions: Tensor, dtype: torch.dtype) -> bool:
    token = torch.empty(1, attention.heads, len(positions), 1, dtype=dtype)
    form = cheapest_form(
        Operands(
            token,
            token,
            token,
            positions,
            positions,
            attention.log_bandwidth.detach().exp(),
            scale=attention.scale,
            spatial_kernel="gaussian",
            query_prefix=attention.prefix,
            key_prefix=attention.prefix,
        )
    )
    if form.spatial_kernel == "gaussian":
        return False
    assert form.query_positions is not None
    assert form.key_positions is not None
    del attention.log_bandwidth
    attention.query_features = nn.Parameter(form.query_positions, requires_grad=False)
    attention.key_features = nn.Parameter(form.key_positions, requires_grad=False)
    attention.config = attention.config.model_copy(
        update={
            "spatial_kernel": "dot",
            "position_features": form.query_positions.shape[-1],
        }
    )
    return True
