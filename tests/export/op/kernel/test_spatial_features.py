"""The Gaussian spatial kernel as features: as exact as promised, within its stated bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.export.op.kernel.problems import DEVICE, Problem, problem, relative_error

from bilateral_export.op.kernel import launch
from bilateral_export.op.kernel.launch import prepare
from bilateral_export.op.kernel.spatial_features import SKIP_FROM, cheapest_form, gaussian_features


def as_features(case: Problem) -> Problem:
    assert case.query_positions is not None
    assert case.key_positions is not None
    assert case.bandwidth is not None
    query, key = gaussian_features(
        case.query_positions, case.key_positions, case.bandwidth, case.scale, case.query.dtype,
        case.key_prefix,
    )  # fmt: skip
    return case.with_(
        query_positions=query, key_positions=key, bandwidth=None, spatial_kernel="dot"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("coordinates", [1, 2, 3])
def test_the_logits_are_within_the_stated_bound(dtype: torch.dtype, coordinates: int) -> None:
    case = problem(
        dtype=dtype, spatial_kernel="gaussian", coordinates=coordinates, n_query=50, scale=0.125
    )
    features = as_features(case)
    assert features.query_positions is not None
    assert features.key_positions is not None
    assert case.query_positions is not None
    assert case.bandwidth is not None
    root = case.scale**0.5
    query, key = (
        (p / root).to(dtype).double() for p in (features.query_positions, features.key_positions)
    )
    got = case.scale * (query @ key.transpose(1, 2))

    for head, sigma in enumerate(case.bandwidth.double()):
        want = torch.stack([case._spatial(head, i) for i in range(50)])
        offset = (got[head] - want).mean(1, keepdim=True)  # the same for all keys of a query
        diameter = torch.cdist(case.query_positions, case.query_positions).max()
        bound = 2.0**-22 * float(diameter / sigma) ** 2
        assert float((got[head] - want - offset).abs().max()) <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"query_prefix": 1, "key_prefix": 2}, {"scale": 0.3}], ids=str
)
def test_it_is_the_same_operator(dtype: torch.dtype, options: dict[str, Any]) -> None:
    if dtype == torch.bfloat16 and "scale" in options and DEVICE == "cpu":
        pytest.skip(
            "the interpreter truncates to bfloat16, which a quotient just below a part shows"
        )
    case = problem(dtype=dtype, spatial_kernel="gaussian", n_query=50, **options)

    exact = case.exact()
    assert relative_error(as_features(case).fused(), exact) <= 1.1 * relative_error(
        case.fused(), exact
    )


def test_two_coordinates_are_one_step_of_a_matrix_instruction() -> None:
    features = as_features(problem(dtype=torch.bfloat16, spatial_kernel="gaussian", coordinates=2))

    assert features.key_positions is not None
    assert features.key_positions.shape[-1] == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_grid_with_prefix_takes_one_step_too_and_is_as_exact(dtype: torch.dtype) -> None:
    case = problem(dtype=dtype, spatial_kernel="gaussian", n_query=50, query_prefix=1, key_prefix=1)
    index = torch.arange(50.0)
    grid = torch.stack((index // 7, index % 7), 1)
    case = case.with_(query_positions=grid, key_positions=grid)
    features = as_features(case)

    assert features.key_positions is not None
    assert features.key_positions.shape[-1] == 16
    exact = case.exact()
    assert relative_error(features.fused(), exact) <= 1.1 * relative_error(case.fused(), exact)


@pytest.mark.parametrize(
    ("dtype", "sigma", "form"),
    [
        # The diameter of 50 tokens on a line is 49: 2^-22 (49 / sigma)^2 against 2^-11 or 2^-8.
        (torch.float16, 49 / 45, "dot"),
        (torch.float16, 49 / 46, "gaussian"),
        (torch.bfloat16, 49 / 128, "dot"),
        (torch.bfloat16, 49 / 129, "gaussian"),
        (torch.float32, 100.0, "gaussian"),
    ],
    ids=str,
)
def test_the_form_follows_from_the_stated_bound(
    dtype: torch.dtype, sigma: float, form: str
) -> None:
    case = problem(dtype=dtype, spatial_kernel="gaussian", n_query=50, coordinates=1)
    line = torch.arange(50.0)[:, None]
    case = case.with_(
        query_positions=line, key_positions=line, bandwidth=torch.tensor([1e3, sigma])
    )

    assert cheapest_form(case).spatial_kernel == form


def test_features_that_live_on_are_rounded_once_and_again_when_they_change() -> None:
    before = len(launch._KEPT)
    case = problem(dtype=torch.float16, spatial_kernel="dot", n_query=20).on_device()
    positions = case.query_positions
    assert positions is not None
    first, same = (prepare(case).features(positions, 0) for _ in range(2))
    assert same is first

    positions.mul_(2)
    assert torch.equal(prepare(case).features(positions, 0), first * 2)
    assert len(launch._KEPT) == before + 1
    del case, positions
    assert len(launch._KEPT) == before


def test_where_far_tiles_are_skipped_the_exact_form_stays() -> None:
    line = torch.arange(float(SKIP_FROM))[:, None]
    case = problem(dtype=torch.bfloat16, spatial_kernel="gaussian", n_query=1).with_(
        query_positions=line, key_positions=line
    )
    narrow, wide = (
        case.with_(bandwidth=torch.full((2,), share * SKIP_FROM)) for share in (0.05, 0.2)
    )

    assert cheapest_form(narrow).spatial_kernel == "gaussian"
    assert cheapest_form(wide).spatial_kernel == "dot"


def test_an_infinite_bandwidth_adds_nothing() -> None:
    case = problem(dtype=torch.float16, spatial_kernel="gaussian")
    case = as_features(case.with_(bandwidth=torch.full((2,), torch.inf)))
    plain = case.with_(spatial_kernel="none", query_positions=None, key_positions=None)

    assert relative_error(case.fused(), plain.fused().double()) < 1e-3
