"""ListOps: the benchmark's limits, values that can be checked by hand, expressions read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilateral_export.tasks.listops import (
    IDS,
    ListOpsConfig,
    batch,
    encode,
    generate,
    parse,
    solve,
)

SMALL = ListOpsConfig(max_depth=4, max_args=5, min_length=3, max_length=60)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MIN 2 9 [MAX 4 7 ] 3 ]", 2),
        ("[MED 1 4 2 ]", 2),
        ("[MED 1 4 2 8 ]", 3),
        ("[MED 1 4 2 9 ]", 3),
        ("[MED 2 3 ]", 2),  # 2.5, rounded down
        ("[SM 7 8 9 ]", 4),
        ("[SM [SM 9 9 ] [MED 5 5 5 ]]", 3),
        ("( ( ( [MAX 1 ) 2 ) ] )", 2),  # as in the benchmark's files
    ],
)
def test_expressions_have_the_value_that_hand_and_definition_give(
    expression: str, value: int
) -> None:
    assert solve(expression) == value


@given(st.integers(0, 2**32))
def test_a_generated_expression_solves_to_its_value_and_keeps_the_limits(seed: int) -> None:
    symbols, value = generate(SMALL, np.random.default_rng(seed))
    assert solve(" ".join(symbols)) == value
    assert SMALL.min_length < len(symbols) < SMALL.max_length
    depth = np.cumsum([symbol.startswith("[") - (symbol == "]") for symbol in symbols])
    assert depth.max() < SMALL.max_depth
    assert parse("".join(f"{symbol} " for symbol in symbols)) == symbols


def test_the_defaults_are_the_benchmarks_lengths() -> None:
    symbols, _ = generate(ListOpsConfig(), np.random.default_rng(0))
    assert 500 < len(symbols) < 2000


def test_a_batch_is_padded_with_zeros_and_the_same_for_the_same_seed() -> None:
    tokens, values = batch(SMALL, 6, np.random.default_rng(3))
    again, _ = batch(SMALL, 6, np.random.default_rng(3))
    np.testing.assert_array_equal(tokens, again)
    names = {number: symbol for symbol, number in IDS.items()}
    for row, value in zip(tokens, values, strict=True):
        symbols = [names[token] for token in row[row > 0]]
        assert solve(" ".join(symbols)) == value
        np.testing.assert_array_equal(encode(symbols), row[: len(symbols)])
        assert not row[len(symbols) :].any()


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("[MAX 1 2", "not one closed list"),
        ("1 2", "not one closed list"),
        ("[MAX 1 ] ]", "closes nothing"),
        ("[MAX ]", "closes nothing"),
        ("[AVG 1 2 ]", "symbol 1: '\\[AVG'"),
        ("[MAX 1 12 ]", "symbol 3: '12'"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_place(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        solve(expression)
