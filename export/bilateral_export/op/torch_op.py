"""`torch.ops.bilateral.attention`: the operator as PyTorch sees it, one opaque call in a graph."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from bilateral_export.op.attention import attention
from bilateral_export.op.contract import RangeKernel, SpatialKernel
from bilateral_export.op.validate import check_inputs

# The operands that are no tensors, in order, as `attention` names them.
_OPTIONS = ("scale", "range_kernel", "spatial_kernel", "query_prefix", "key_prefix", "causal")


@torch.library.custom_op("bilateral::attention", mutates_args=())
def bilateral_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    bandwidth: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
    range_kernel: str,
    spatial_kernel: str,
    query_prefix: int,
    key_prefix: int,
    causal: bool,
) -> Tensor:
    """Bilateral attention (op/README.md), on any device, in the query's dtype.

    Raises:
        ValueError: An operand does not fit the contract.
    """
    tensors = (query, key, value, query_positions, key_positions, bandwidth, key_bias)
    options = (scale, range_kernel, spatial_kernel, query_prefix, key_prefix, causal)
    check_inputs(*tensors, range_kernel, spatial_kernel)
    return _composite(tensors, options)


@bilateral_attention.register_kernel("cuda")
def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    bandwidth: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
    range_kernel: str,
    spatial_kernel: str,
    query_prefix: int,
    key_prefix: int,
    causal: bool,
) -> Tensor:
    """The fused kernel, where it has code for the operands; else the composite."""
    from bilateral_export.op.kernel import launcher  # imports triton, which CPU machines lack

    tensors = (query, key, value, query_positions, key_positions, bandwidth, key_bias)
    check_inputs(*tensors, range_kernel, spatial_kernel)
    kernels = cast(RangeKernel, range_kernel), cast(SpatialKernel, spatial_kernel)
    options = (scale, *kernels, query_prefix, key_prefix, causal)
    if launcher.unsupported(query, query_positions, spatial_kernel):
        return _composite(tensors, options)
    return launcher.bilateral_attention_forward(*tensors, *options)


def _composite(tensors: tuple[Any, ...], options: tuple[Any, ...]) -> Tensor:
    return attention(*tensors, **dict(zip(_OPTIONS, options, strict=True)))


@bilateral_attention.register_fake
def _fake(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    tensors, ctx.options = inputs[:7], inputs[7:]
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Recompute the composite with autograd on: correct for every option, O(N) extra memory."""
    wanted: list[Any] = [
        None if saved is None else saved.detach().requires_grad_(needed)
        for saved, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:7], strict=True)
    ]
    with torch.enable_grad():
        output = _composite(tuple(wanted), ctx.options)
    leaves = [tensor for tensor in wanted if tensor is not None and tensor.requires_grad]
    gradients = iter(torch.autograd.grad(output, leaves, grad_output, allow_unused=True))
    return tuple(
        next(gradients) if tensor is not None and tensor.requires_grad else None
        for tensor in wanted
    ) + (None,) * len(_OPTIONS)


bilateral_attention.register_autograd(_backward, setup_context=_save_for_backward)
