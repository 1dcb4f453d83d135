"""Errors, units of last place, budgets and decisions on numbers that can be checked by hand."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from bilateral_export.parity.budget import Budget, largest_error, quotient
from bilateral_export.parity.decision import judge_decisions
from bilateral_export.parity.measure import (
    ULP_EDGES,
    cosines,
    error_floor,
    item_errors,
    magnitude,
    pooled_errors,
    relative_errors,
    ulp_histogram,
    ulps,
)

FLOOR = error_floor(np.zeros(1), "fp32")
NUMBERS = arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32))
NONZERO = st.floats(2**-10, 1e4, width=32) | st.floats(-1e4, -(2**-10), width=32)


def test_an_error_is_relative_to_its_own_item() -> None:
    reference = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    got = reference + np.array([[0.0, 0.05], [0.0, 0.05], [0.0, 0.05]])
    np.testing.assert_allclose(relative_errors(got, reference), [0.01, 0.1, 0.05])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad: float) -> None:
    reference = np.ones((2, 3))
    got = reference.copy()
    got[1, 2] = bad
    assert list(relative_errors(got, reference)) == [0, np.inf]
    assert list(cosines(got, reference)) == [pytest.approx(1), -1]
    assert np.isinf(ulps(got, reference, "fp32")[1, 2])


@given(arrays.arrays(np.float32, 5, elements=NONZERO), st.integers(-3, 3))
def test_neighbours_in_float32_are_one_unit_apart(values: np.ndarray, steps: int) -> None:
    moved = values
    for _ in range(abs(steps)):
        moved = np.nextafter(moved, np.float32(np.sign(steps) * np.inf))
    distance = ulps(moved, values.astype(np.float64), "fp32")
    # Units double at powers of two, so that a step down from one is half a unit.
    assert (distance <= abs(steps)).all()
    assert (distance >= abs(steps) / 2).all()


@given(NUMBERS)
def test_every_element_is_in_one_bin(values: np.ndarray) -> None:
    counts = ulp_histogram(ulps(values, np.ones_like(values, dtype=np.float64), "fp16"))
    assert sum(counts) == values.size
    assert len(counts) == len(ULP_EDGES) + 1


@given(NUMBERS)
def test_a_vector_points_where_it_points(values: np.ndarray) -> None:
    wide = values.astype(np.float64)
    np.testing.assert_allclose(cosines(2 * wide, wide), 1)
    np.testing.assert_allclose(cosines(-wide, wide), np.where(np.abs(wide).sum(1) > 0, -1, 1))


def test_a_constant_ratio_is_known_for_certain() -> None:
    eager = np.linspace(1e-6, 2e-6, 9)
    found = quotient(1.5 * eager, eager, FLOOR)
    assert found.typical == pytest.approx(1.5)
    assert found.typical_low == pytest.approx(found.typical_high)
    assert found.worst == pytest.approx(1.5 * 2e-6 / largest_error(eager, FLOOR))
    assert found.within(Budget.of(4))
    assert not found.within(Budget.of(2.9))


def test_the_largest_error_is_not_left_to_luck() -> None:
    """The largest of another 32 items of one distribution is as often larger as not."""
    errors = 1e-6 * np.exp(0.4 * np.random.default_rng(0).standard_normal((200, 32)))
    seen = errors.max(axis=1)
    expected = np.array([largest_error(items, FLOOR) for items in errors])
    assert (expected >= seen).all()
    assert (expected <= 2 * seen).all()
    assert np.mean(seen[:, None] > expected) < 0.1 < 0.4 < np.mean(seen[:, None] > seen)


@given(st.integers(1, 40), st.integers(1, 40))
def test_items_without_an_error_do_not_raise_the_budget_beyond_twice(easy: int, hard: int) -> None:
    errors = np.concatenate([np.zeros(easy), np.full(hard, 1e-4)])
    assert 1e-4 <= largest_error(errors, FLOOR) <= 2e-4


def test_few_items_show_no_spread() -> None:
    assert largest_error(np.array([1e-7, 3e-6, 1e-6]), FLOOR) == 3e-6
    assert largest_error(np.array([1e-7, np.inf, *[1e-6] * 8]), FLOOR) == np.inf


def test_more_items_make_more_certain() -> None:
    generator = np.random.default_rng(0)
    eager = np.full(1000, 1e-5)
    errors = eager * np.exp(generator.standard_normal(1000))
    few, many = quotient(errors[:10], eager[:10], FLOOR), quotient(errors, eager, FLOOR)
    assert many.typical_low <= 1 <= many.typical_high
    assert many.typical_high - many.typical_low < few.typical_high - few.typical_low


def test_too_few_items_for_a_verdict_do_not_pass() -> None:
    """Three items whose ratios differ a thousandfold are consistent with a large error."""
    found = quotient(np.array([1e-7, 3e-5, 3e-6]), np.full(3, 1e-5), FLOOR)
    assert found.typical < 2 < found.typical_high
    assert not found.within(Budget())


def test_an_exact_eager_model_allows_rounding_and_no_more() -> None:
    eager = np.zeros(8)
    assert quotient(np.full(8, 2e-8), eager, FLOOR).within(Budget())
    assert not quotient(np.full(8, 1e-6), eager, FLOOR).within(Budget())


def test_one_infinite_error_fails() -> None:
    errors = np.array([1e-6, np.inf])
    assert not quotient(errors, np.full(2, 1e-6), FLOOR).within(Budget(1e9, 1e9))


def test_a_close_call_may_flip_and_a_clear_one_may_not() -> None:
    reference = [np.array([[1.0, 0.999999], [1.0, 0.5]])]
    close = [np.array([[0.999999, 1.0], [1.0, 0.5]])]
    clear = [np.array([[1.0, 0.999999], [0.5, 1.0]])]
    found = judge_decisions("logits", close, reference, budget=1e-5)
    assert found is not None
    assert (found.agreement, found.flipped, found.metric) == (0.5, 0, "top-1")
    found = judge_decisions("logits", clear, reference, budget=1e-5)
    assert found is not None
    assert found.flipped == 1


def test_likelihoods_sum_up_to_a_perplexity_ratio() -> None:
    reference = [np.full((2, 3), -2.0), np.full((1, 2), -1.0)]
    found = judge_decisions("log_likelihood", [r - 0.1 for r in reference], reference, 1e-3)
    assert found is not None
    assert found.summary_value == pytest.approx(np.exp(0.1))


def test_pixels_have_a_mean_intersection_over_union() -> None:
    truth = np.zeros((1, 2, 1, 4))
    truth[0, 1, 0, 2:] = 1  # two pixels of class 0 (a tie goes to the first), two of class 1
    mine = truth.copy()
    mine[0, 1, 0, 1] = 1  # one more of class 1
    found = judge_decisions("logits", [mine], [truth], 0.0)
    assert found is not None
    assert found.metric == "pixel class"
    assert found.agreement == 0.75
    assert found.summary_value == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_cache_decides_nothing() -> None:
    assert (
        judge_decisions("keys", [np.zeros((1, 2, 3, 4, 5))], [np.zeros((1, 2, 3, 4, 5))], 1) is None
    )


def test_labels_are_compared_as_decisions() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    mine = np.array([[0, 1, 1, 1], [2, 2, 2, 2]])
    assert list(item_errors(mine, truth)) == [0.25, 0]
    found = judge_decisions("classes", [mine], [truth], 0.0)
    assert found is not None
    assert found.agreement == 7 / 8
    assert found.summary_value == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_items_of_few_numbers_are_pooled_and_others_stay_alone() -> None:
    reference = [np.ones((1, 1)), np.ones((20, 1)), np.ones((3, 8)), np.ones((2, 3))]
    got = [array.copy() for array in reference]
    got[1][4] += 0.1
    got[2][1] += 0.2
    errors, furthest = pooled_errors(got, reference)
    # 21 of one number: 8 and 13; three of eight: alone; two of three: together, being all.
    np.testing.assert_allclose(errors, [0.1 / np.sqrt(8), 0, 0, 0.2, 0, 0])
    assert furthest[0] == 5
    assert furthest[3] == 22


def test_a_number_near_zero_does_not_blow_up_its_pool() -> None:
    reference = np.array([[1e-9], *[[1.0]] * 7])
    errors, furthest = pooled_errors([reference + 1e-7], [reference])
    np.testing.assert_allclose(errors, [1e-7 * np.sqrt(8 / 7)])
    assert furthest.shape == (1,)
    assert magnitude([reference]) == pytest.approx(np.sqrt(7 / 8))
    assert item_errors(reference + 1e-7, reference, magnitude([reference])).max() < 1.1e-7
    assert item_errors(reference + 1e-7, reference).max() > 10


def test_one_number_that_is_not_finite_is_infinitely_wrong_in_its_pool() -> None:
    reference = np.ones((8, 1))
    got = reference.copy()
    got[3] = np.nan
    errors, furthest = pooled_errors([got], [reference])
    assert list(errors) == [np.inf]
    assert list(furthest) == [3]
