"""`torch.ops.bilateral.attention`: the operator as PyTorch sees it, one opaque call in a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilateral_export.op.attention import attention
from bilateral_export.op.operands import N_TENSORS, Operands
from bilateral_export.op.validate import check_inputs


# The operator's schema is read off this signature; everything else takes `Operands`.
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
    """Return bilateral attention (op/README.md), on any device, in the query's dtype.

    Raises:
        ValueError: An operand does not fit the contract.
    """
    given: tuple[Any, ...] = (
        query, key, value, query_positions, key_positions, bandwidth, key_bias,
        scale, range_kernel, spatial_kernel, query_prefix, key_prefix, causal,
    )  # fmt: skip
    operands = Operands(*given)
    check_inputs(operands)
    return _composite(operands)


@bilateral_attention.register_kernel("cuda")
def _fused(*given: Any) -> Tensor:
    """Return the fused kernel's output where it has code for the operands, else the composite's."""
    from bilateral_export.op.kernel import launch  # imports triton, which CPU machines lack

    operands = Operands(*given)
    check_inputs(operands)
    if launch.unsupported(operands):
        return _composite(operands)
    return launch.bilateral_attention_forward(operands)


def _composite(operands: Operands) -> Tensor:
    return attention(**vars(operands))


@bilateral_attention.register_fake
def _fake(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.options = inputs[N_TENSORS:]
    ctx.save_for_backward(*inputs[:N_TENSORS])


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Return gradients of the composite, recomputed: for every option, O(N) extra memory."""
    wanted: list[Any] = [
        None if saved is None else saved.detach().requires_grad_(needed)
        for saved, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:N_TENSORS], strict=True)
    ]
    with torch.enable_grad():
        output = _composite(Operands(*wanted, *ctx.options))
    leaves = [tensor for tensor in wanted if tensor is not None and tensor.requires_grad]
    gradients = iter(torch.autograd.grad(output, leaves, grad_output, allow_unused=True))
    return tuple(
        next(gradients) if tensor is not None and tensor.requires_grad else None
        for tensor in wanted
    ) + (None,) * len(ctx.options)


bilateral_attention.register_autograd(_backward, setup_context=_save_for_backward)
