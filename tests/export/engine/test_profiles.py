from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilateral_export.engine.profiles import (
    Range,
    check_profile,
    default_profile,
    max_batch,
    parse_profile,
)
from bilateral_export.errors import UserError

SIZES = st.lists(st.integers(1, 4096), min_size=3, max_size=3).map(sorted)


@given(st.lists(SIZES, min_size=1, max_size=5))
def test_a_range_reads_back_from_its_own_text(axes: list[list[int]]) -> None:
    low, middle, high = (tuple(shape) for shape in zip(*axes, strict=True))
    written = Range(low, middle, high)
    assert parse_profile(f"input={written}") == {"input": written}
    assert all(written.contains(shape) for shape in (low, middle, high))
    assert not written.contains((high[0] + 1, *high[1:]))


def test_several_inputs_are_separated_by_commas() -> None:
    profile = parse_profile("image=1x3x8x8:4x3x8x8:8x3x8x8, mask=1x64:4x64:8x64")
    assert profile["mask"] == Range((1, 64), (4, 64), (8, 64))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "input",
        "input=1x3",
        "input=1x3:2x3",
        "input=1x3:2x3:4x3:8x3",
        "input=ax3:2x3:4x3",
        "input=1x3:2x3:4",
        "input=4x3:2x3:1x3",
        "input=0x3:1x3:2x3",
        "input=1x3:2x3:4x3,input=1x3:2x3:4x3",
    ],
)
def test_a_malformed_profile_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_profile(text)


def test_the_default_profile_takes_the_first_dimension_as_the_batch() -> None:
    profile = default_profile({"image": (-1, 3, 224, 224), "scale": (1,)}, max_batch=64)
    assert profile == {"image": Range((1, 3, 224, 224), (16, 3, 224, 224), (64, 3, 224, 224))}


def test_a_dynamic_length_needs_a_known_size() -> None:
    shapes = {"tokens": (-1, -1)}
    assert default_profile(shapes, 8, {("tokens", 1): (1, 256)}) == {
        "tokens": Range((1, 1), (2, 256), (8, 256))
    }
    with pytest.raises(UserError, match="--profile"):
        default_profile(shapes, 8)


def test_a_cache_may_be_empty_but_a_batch_may_not() -> None:
    assert parse_profile("cache=1x0x8:1x4x8:2x8x8")["cache"].contains((2, 0, 8))
    with pytest.raises(UserError, match="at least 1"):
        parse_profile("cache=0x1x8:1x4x8:2x8x8")


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ("images=1x8:2x8:4x8", "does not have"),
        ("mask=1x4:2x4:4x4", "leaves out"),
        ("input=1x9:2x9:4x9", "1x9"),
        ("input=1x8x1:2x8x1:4x8x1", "1x8x1"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(profile: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_profile(parse_profile(profile), {"input": (-1, 8), "mask": (4, 4)})


def test_the_largest_batch_is_what_every_input_accepts_in_some_profile() -> None:
    inputs = {"a": (-1, 8), "b": (-1, 4)}
    small = parse_profile("a=1x8:1x8:4x8,b=1x4:1x4:16x4")
    large = parse_profile("a=1x8:8x8:8x8,b=1x4:8x4:12x4")
    assert max_batch([small], inputs) == 4
    assert max_batch([small, large], inputs) == 8


def test_a_fixed_first_dimension_cannot_be_batched() -> None:
    assert max_batch([], {"a": (1, 8)}) == 0
    assert max_batch([parse_profile("a=1x8:1x8:4x8")], {"a": (-1, 8), "b": (4,)}) == 0
