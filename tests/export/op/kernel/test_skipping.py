"""Tiles are left out only where a bound proves that they do not matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.export.op.kernel.problems import SMALL, Problem, problem, relative_error

from bilateral_export.op.kernel.launch import SKIP_TOLERANCE, prepare
from bilateral_export.op.kernel.spatial_features import SKIP_FROM


def line(n: int, sigma: float, **options: Any) -> Problem:
    """Tokens on a line, one apart."""
    case = problem(n_query=n, heads=1, spatial_kernel="gaussian", coordinates=1, **options)
    positions = torch.arange(float(n))[:, None]
    return case.with_(
        query_positions=positions, key_positions=positions, bandwidth=torch.tensor([sigma])
    )


def ranges(case: Problem) -> torch.Tensor:
    """`[row tiles, 2]`: the whole key tiles that each program attends to."""
    launch = prepare(case.on_device(), True, SMALL)
    return launch.tile_ranges(*launch.key_terms())[0, 0].cpu()


def test_a_narrow_kernel_attends_to_the_tiles_around_the_diagonal() -> None:
    low, high = ranges(line(256, sigma=1.0)).T

    for row_tile in range(8):
        own = (2 * row_tile, 2 * row_tile + 2)  # tiles of 16 keys, programs of 32 queries
        assert own[0] - 2 <= low[row_tile] <= own[0]
        assert own[1] <= high[row_tile] <= own[1] + 2


def test_an_infinite_bandwidth_leaves_nothing_out() -> None:
    found = ranges(line(256, sigma=float("inf")))

    assert found.tolist() == [[0, 16]] * 8


def test_a_query_without_position_keeps_every_tile_of_its_program() -> None:
    found = ranges(line(256, sigma=1.0, query_prefix=1))

    assert found[0].tolist() == [0, 16]
    assert found[3, 1] - found[3, 0] < 8


def test_tokens_that_outweigh_the_distance_are_kept() -> None:
    """A far key that is similar enough to win must not be left out: the bound looks at norms."""
    case = line(128, sigma=2.0)
    key = case.key.clone()
    key[0, 0, 120] = case.query[0, 0, 3] * 4000
    case = case.with_(key=key)

    assert ranges(case)[0, 1] == 8
    assert relative_error(case.fused(skip_tiles=True), case.exact()) < 1e-6


@pytest.mark.parametrize("dtype", SKIP_TOLERANCE, ids=str)
def test_what_may_be_left_out_moves_an_output_by_half_a_unit_at_most(dtype: torch.dtype) -> None:
    """Of the last place of max|v|, which is at least eps / 2 of it, by 2 SKIP_TOLERANCE max|v|."""
    assert 2 * SKIP_TOLERANCE[dtype] <= torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(("times_tolerance", "high"), [(1.05, 3), (0.95, 2)])
def test_the_bound_is_tight_where_keys_align_and_boxes_are_points(
    times_tolerance: float, high: int, scale: float
) -> None:
    """Two tiles of zero keys at the queries' place, one far tile of keys along the query.

    There the bound is the truth: the far tile holds 16 exp(5 - d^2/2) / 32 of the near weights. It
    may go if and only if that is within the budget of one end.
    """
    query, key = torch.zeros(2, 1, 1, 48, 16)
    query[..., 0] = 1 / scale
    key[:, :, 32:, 0] = 5
    share = times_tolerance * SKIP_TOLERANCE[torch.float32] / 2
    distance = math.sqrt(2 * (5 - math.log(2 * share)))
    positions = torch.zeros(48, 1)
    positions[32:] = distance
    case = Problem(
        query[:, :, :32], key, torch.randn(1, 1, 48, 16), positions[:32], positions,
        torch.ones(1), scale=scale, spatial_kernel="gaussian",
    )  # fmt: skip

    assert ranges(case).tolist() == [[0, high]]


@pytest.mark.parametrize(("n_key", "skips"), [(SKIP_FROM - 1, False), (SKIP_FROM, True)])
def test_tiles_are_looked_for_from_so_many_keys_on(n_key: int, skips: bool) -> None:
    case = problem(n_query=1, n_key=n_key, heads=1, spatial_kernel="gaussian")

    assert prepare(case.on_device()).skip_tiles == skips
    assert not prepare(case.with_(spatial_kernel="none").on_device()).skip_tiles


def test_hidden_keys_are_left_out() -> None:
    bias = torch.zeros(1, 256)
    bias[:, 128:] = -torch.inf
    case = line(256, sigma=float("inf")).with_(key_bias=bias)

    assert ranges(case)[0].tolist() == [0, 8]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("range_kernel", ["dot", "gaussian"])
def test_skipping_changes_nothing_that_float32_shows(range_kernel: Any, causal: bool) -> None:
    case = line(160, sigma=1.5, range_kernel=range_kernel, causal=causal, key_prefix=1)

    assert relative_error(case.fused(skip_tiles=True), case.exact()) < 1e-6


@given(
    n_query=st.integers(1, 70),
    n_key=st.integers(20, 120),
    sigma=st.floats(0.05, 20),
    size=st.floats(0.1, 20),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    range_kernel=st.sampled_from(["dot", "gaussian"]),
    coordinates=st.integers(1, 3),
    seed=st.integers(0, 1 << 16),
    causal=st.booleans(),
    ordered=st.booleans(),
)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_the_error_of_skipping_is_within_the_stated_bound(
    n_query: int, n_key: int, sigma: float, size: float, seed: int, ordered: bool, **options: Any
) -> None:
    case = problem(
        n_query=n_query, n_key=n_key, heads=1, spatial_kernel="gaussian", seed=seed, **options
    )
    assert case.key_positions is not None
    keys = case.key_positions
    case = case.with_(
        bandwidth=torch.tensor([sigma]),
        query=case.query * size,
        key_positions=keys.sort(0).values if ordered else keys,
    )

    with_skipping, without = (case.fused(skip_tiles=skip).double() for skip in (True, False))

    largest = float(case.value.abs().max())
    unit = torch.finfo(case.value.dtype).eps * largest  # both results are rounded once more
    difference = float((with_skipping - without).abs().max())
    assert difference <= 2 * SKIP_TOLERANCE[case.value.dtype] * largest + unit
