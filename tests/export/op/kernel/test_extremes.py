"""Inputs at the edges of what the types hold: right where they can be, and never NaN."""

from __future__ import annotations

import pytest
import torch
from tests.export.op.kernel.problems import problem, relative_error


@pytest.mark.parametrize("bandwidth", [1e-3, 1e-1, 1e4, float("inf")])
def test_bandwidths(bandwidth: float) -> None:
    case = problem(spatial_kernel="gaussian", n_query=20)
    case = case.with_(bandwidth=torch.full((2,), bandwidth))

    assert relative_error(case.fused(), case.exact()) < 1e-5


def test_a_row_whose_kernel_underflows_everywhere_but_at_itself_gives_its_own_value() -> None:
    case = problem(spatial_kernel="gaussian", n_query=20)
    positions = torch.arange(40.0).reshape(20, 2)
    case = case.with_(
        query_positions=positions, key_positions=positions, bandwidth=torch.full((2,), 1e-3)
    )

    assert torch.equal(case.fused(), case.value)


def test_positions_far_from_the_origin_lose_nothing() -> None:
    case = problem(spatial_kernel="gaussian", n_query=20)
    positions = torch.randint(0, 8, (20, 2)).float()
    near = case.with_(query_positions=positions, key_positions=positions)
    far = case.with_(query_positions=positions + 2.0**20, key_positions=positions + 2.0**20)

    assert torch.equal(near.fused(), far.fused())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand(dtype: torch.dtype, sign: int) -> None:
    case = problem(dtype=dtype, n_query=20, scale=1.0)
    case = case.with_(query=torch.full_like(case.query, 25.0 * sign), key=case.key * 0 + 25)
    assert float(case.query[0, 0, 0] @ case.key[0, 0, 0]) == sign * 1e4

    assert relative_error(case.fused(), case.exact()) < 1e-3


def test_distinct_logits_of_ten_thousand_pick_the_largest() -> None:
    case = problem(n_query=20)
    case = case.with_(query=case.query * 100, key=case.key * 100)

    assert relative_error(case.fused(), case.exact()) < 2e-2


def test_one_token() -> None:
    case = problem(n_query=1, range_kernel="gaussian", spatial_kernel="gaussian")

    assert torch.equal(case.fused(), case.value)


def test_equal_tokens_average_the_values() -> None:
    case = problem(n_query=20, range_kernel="gaussian")
    case = case.with_(query=torch.ones_like(case.query), key=torch.ones_like(case.key))

    mean = case.value.mean(2, keepdim=True).expand_as(case.value)
    assert relative_error(case.fused(), mean.double()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("range_kernel", ["dot", "gaussian"])
def test_subnormal_and_huge_inputs_are_never_nan(dtype: torch.dtype, range_kernel: str) -> None:
    tiny = torch.finfo(dtype).tiny / 4
    # The largest whose products float32 holds.
    huge = min(torch.finfo(dtype).max, 1e17)
    for size in (tiny, huge):
        case = problem(
            dtype=dtype, n_query=20, range_kernel=range_kernel, spatial_kernel="gaussian"
        )
        case = case.with_(query=case.query.sign() * size, key=case.key.sign() * size)

        assert case.fused().isfinite().all()


def test_a_mask_leaves_no_nan_where_whole_tiles_are_hidden() -> None:
    bias = torch.full((1, 60), -torch.inf)
    bias[:, 58] = 0  # the last tile alone has a key
    case = problem(n_query=60, spatial_kernel="gaussian").with_(key_bias=bias)

    expected = case.value[:, :, 58:59].expand_as(case.value)
    assert torch.equal(case.fused(), expected)
    assert torch.equal(case.fused(skip_tiles=True), expected)


def test_features_beyond_the_type_are_cut_and_not_infinite() -> None:
    case = problem(dtype=torch.float16, spatial_kernel="dot", n_query=20)
    assert case.query_positions is not None
    case = case.with_(query_positions=case.query_positions * 1e6)

    assert case.fused().isfinite().all()
