"""Percentiles: right on known distributions, honest intervals, refused where unsupported."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilateral_benchmarks.statistics.distribution import Distribution
from bilateral_benchmarks.statistics.percentiles import PERCENTS, design_effect, percentile


def test_a_percentile_is_refused_below_the_count_that_could_show_it() -> None:
    # Of n requests none exceeds the p99 with probability 0.99^n: 2.5 % at n = 368.
    assert percentile(np.arange(367.0), 99.0).value_ms is None
    assert percentile(np.arange(367.0), 99.0).needed == 368
    assert percentile(np.arange(368.0), 99.0).value_ms == pytest.approx(1e3 * 364)


def test_intervals_contain_the_true_percentile_as_often_as_they_claim() -> None:
    generator = np.random.default_rng(1)
    true = -np.log(1 - 0.95)
    hits = 0
    for _ in range(400):
        found = percentile(generator.exponential(size=800), 95.0)
        assert found.low_ms is not None
        assert found.high_ms is not None
        hits += found.low_ms <= 1e3 * true <= found.high_ms
    # 0.95 claimed; the design effect makes it a little wider. 3 sigma of 400 draws is 0.033.
    assert hits / 400 > 0.95 - 0.033


def test_correlated_requests_widen_the_interval() -> None:
    generator = np.random.default_rng(2)
    independent = generator.exponential(size=8000)
    bursts = np.repeat(generator.exponential(size=80), 100)
    below = bursts <= np.quantile(bursts, 0.9)
    assert design_effect(below) > 10
    assert design_effect(independent <= np.quantile(independent, 0.9)) < 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(min_value=1e-6, max_value=60.0), min_size=1, max_size=600).map(np.array))
def test_percentiles_lie_in_their_intervals_and_never_fall(values: np.ndarray) -> None:
    distribution = Distribution.of(values)
    last = 0.0
    for found in distribution.percentiles:
        if found.value_ms is None:
            continue
        assert found.low_ms is None or found.low_ms <= found.value_ms
        assert found.high_ms is None or found.high_ms >= found.value_ms
        assert distribution.min_ms <= found.value_ms <= distribution.max_ms
        assert found.value_ms >= last
        last = found.value_ms


def test_the_histogram_holds_the_whole_distribution_to_three_digits() -> None:
    values = np.random.default_rng(3).lognormal(-5, 1, size=20_000)
    distribution = Distribution.of(values)
    curve = distribution.curve(np.array(PERCENTS))
    exact = 1e3 * np.quantile(values, np.array(PERCENTS) / 100)
    np.testing.assert_allclose(curve, exact, rtol=5e-3)
