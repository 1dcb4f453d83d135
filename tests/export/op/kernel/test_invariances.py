"""What must not matter, for any problem that hypothesis can think of."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.export.op.kernel.problems import Problem, problem, relative_error

few = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
problems = st.builds(
    problem,
    n_query=st.integers(1, 40),
    n_key=st.integers(1, 50),
    heads=st.integers(1, 2),
    width=st.sampled_from([16, 24]),
    range_kernel=st.sampled_from(["dot", "gaussian"]),
    spatial_kernel=st.just("gaussian"),
    coordinates=st.integers(1, 3),
    seed=st.integers(0, 1 << 16),
    scale=st.sampled_from([0.05, 0.25, 1.5]),
    query_prefix=st.integers(0, 2),
    key_prefix=st.integers(0, 2),
)


@given(problems, st.integers(-64, 64))
@few
def test_translation_of_all_positions(case: Problem, offset: int) -> None:
    assert case.query_positions is not None
    assert case.key_positions is not None
    # On a grid of 1/8 the translated positions are exact.
    query, key = ((8 * p).round() / 8 for p in (case.query_positions, case.key_positions))
    here = case.with_(query_positions=query, key_positions=key)
    there = case.with_(query_positions=query + offset, key_positions=key + offset)

    assert torch.equal(here.fused(), there.fused())


@given(problems, st.randoms(use_true_random=False))
@few
def test_permutation_of_keys(case: Problem, random: object) -> None:
    n_key = case.key.shape[2]
    case = case.with_(key_prefix=0)
    assert case.key_positions is not None
    order = torch.randperm(n_key, generator=torch.Generator().manual_seed(n_key))
    shuffled = case.with_(
        key=case.key[:, :, order],
        value=case.value[:, :, order],
        key_positions=case.key_positions[order],
    )

    assert relative_error(shuffled.fused(), case.fused().double()) < 1e-5


@given(problems)
@few
def test_an_infinite_bandwidth_is_plain_attention(case: Problem) -> None:
    assert case.bandwidth is not None
    wide = case.with_(bandwidth=torch.full_like(case.bandwidth, torch.inf))
    plain = case.with_(
        spatial_kernel="none", query_positions=None, key_positions=None, bandwidth=None
    )

    assert relative_error(wide.fused(), plain.fused().double()) < 1e-6


@given(problems, st.floats(1e-3, 1e4), st.floats(1e-4, 1e4), st.booleans())
@few
def test_never_nan(case: Problem, bandwidth: float, size: float, causal: bool) -> None:
    assert case.bandwidth is not None
    case = case.with_(
        bandwidth=torch.full_like(case.bandwidth, bandwidth),
        query=case.query * size,
        key=case.key * size,
        causal=causal,
    )

    for skip_tiles in (False, True):
        assert case.fused(skip_tiles=skip_tiles).isfinite().all()
