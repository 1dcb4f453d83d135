"""Paired statistics against published numbers and what can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilateral_benchmarks.evaluation import paired
from bilateral_export.intervals import Z, difference_interval


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (1, 9, 22 / 1024),
        (0, 10, 2 / 1024),
        (9, 1, 22 / 1024),
    ],
)
def test_mcnemars_p_value_counts_the_outcomes_of_a_fair_coin(
    first: int, second: int, p: float
) -> None:
    assert paired.mcnemar_p(first, second) == pytest.approx(p)


def test_mcnemars_p_value_of_thousands_of_items() -> None:
    # The normal approximation: z = 100 / sqrt(5000).
    z = 100 / math.sqrt(5000)
    assert paired.mcnemar_p(2450, 2550) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=5e-3)


@given(first=st.integers(0, 50), second=st.integers(0, 50), same=st.integers(0, 200))
def test_the_interval_of_a_difference_mirrors_when_the_models_are_exchanged(
    first: int, second: int, same: int
) -> None:
    items = first + second + same
    if not items:
        return
    low, high = difference_interval(first, second, items)
    assert -1 <= low <= high <= 1
    assert difference_interval(second, first, items) == pytest.approx((-high, -low))


def test_the_interval_of_a_difference_holds_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    items, p_first, p_second = 200, 0.08, 0.03
    held = 0
    for _ in range(2000):
        first, second, _ = random.multinomial(items, [p_first, p_second, 1 - p_first - p_second])
        low, high = difference_interval(int(first), int(second), items)
        held += low <= p_second - p_first <= high
    assert 0.935 < held / 2000 < 0.975


def test_the_bootstraps_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = paired.bootstrap_interval(400, lambda weights: float(weights @ values / 400))
    width = 2 * Z * values.std() / math.sqrt(400)
    assert high - low == pytest.approx(width, rel=0.08)
    assert low < values.mean() < high
    again = paired.bootstrap_interval(400, lambda weights: float(weights @ values / 400))
    assert again == (low, high)


def test_mean_iou_leaves_out_classes_that_nobody_has() -> None:
    assert paired.mean_iou(np.array([3, 0, 0]), np.array([4, 2, 0])) == pytest.approx(0.375)
    assert math.isnan(paired.mean_iou(np.array([0]), np.array([0])))
