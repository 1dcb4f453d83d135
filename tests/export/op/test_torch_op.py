"""The operator inside PyTorch: opcheck, gradients, and refusals that name the operand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bilateral_export.op.attention import attention
from bilateral_export.op.torch_op import bilateral_attention


def arguments(spatial_kernel: str = "gaussian", requires_grad: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return made.requires_grad_(requires_grad)

    positions: Tensor | None = None
    bandwidth: Tensor | None = None
    if spatial_kernel == "gaussian":
        positions = normal(5, 2)
        bandwidth = torch.tensor([0.8, 1.5], dtype=torch.float64, requires_grad=requires_grad)
    if spatial_kernel == "dot":
        positions = normal(2, 5, 3)
    tokens = [normal(2, 2, 5, 4) for _ in range(3)]
    options = [0.5, "gaussian", spatial_kernel, 1, 1, False]
    return [*tokens, positions, positions, bandwidth, None, *options]


@pytest.mark.parametrize("spatial_kernel", ["none", "gaussian", "dot"])
def test_opcheck_finds_nothing(spatial_kernel: str) -> None:
    torch.library.opcheck(bilateral_attention, tuple(arguments(spatial_kernel)))


@pytest.mark.parametrize("spatial_kernel", ["none", "gaussian", "dot"])
def test_gradients_match_finite_differences(spatial_kernel: str) -> None:
    given = arguments(spatial_kernel)
    assert torch.autograd.gradcheck(bilateral_attention, tuple(given))


def test_it_is_the_arithmetic_of_the_op_package() -> None:
    given = arguments(requires_grad=False)
    names = ("scale", "range_kernel", "spatial_kernel", "query_prefix", "key_prefix", "causal")
    expected = attention(*given[:7], **dict(zip(names, given[7:], strict=True)))
    torch.testing.assert_close(bilateral_attention(*given), expected)


@pytest.mark.parametrize(
    ("index", "replacement", "message"),
    [
        (0, torch.zeros(2, 5, 4), "query has shape"),
        (1, torch.zeros(2, 2, 5, 3, dtype=torch.float64), "key has shape"),
        (2, torch.zeros(2, 2, 5, 4), "value is torch.float32, query is torch.float64"),
        (3, None, "query_positions is missing"),
        (4, torch.zeros(4, 2), r"key_positions has shape \(4, 2\), expected \(5, 2\)"),
        (5, torch.zeros(3), "bandwidth has shape"),
        (6, torch.zeros(2, 4), "key_bias has shape"),
        (8, "cosine", "range_kernel 'cosine'"),
        (9, "none", "query_positions is given"),
    ],
)
def test_operands_that_do_not_fit_are_named(index: int, replacement: Any, message: str) -> None:
    given = arguments(requires_grad=False)
    given[index] = replacement
    with pytest.raises(ValueError, match=message):
        bilateral_attention(*given)
