"""The Gaussian spatial kernel as features: as exact as promised, within its stated bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.export.op.kernel.problems import DEVICE, Problem, problem, relative_error

from bilateral_export.op.kernel.features import gaussian_features


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


def test_an_infinite_bandwidth_adds_nothing() -> None:
    case = problem(dtype=torch.float16, spatial_kernel="gaussian")
    case = as_features(case.with_(bandwidth=torch.full((2,), torch.inf)))
    plain = case.with_(spatial_kernel="none", query_positions=None, key_positions=None)

    assert relative_error(case.fused(), plain.fused().double()) < 1e-3
