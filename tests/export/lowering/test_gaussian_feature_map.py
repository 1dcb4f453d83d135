"""The extra columns' dot products are the spatial kernel, exactly and in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilateral_export.lowering.attention_mask import spatial_mask
from bilateral_export.lowering.attention_pattern import AttentionPattern
from bilateral_export.lowering.gaussian_feature_map import spatial_feature_map


def site(
    positions: np.ndarray, bandwidth: np.ndarray, prefix: int, spatial_kernel: str = "gaussian"
) -> AttentionPattern:
    heads = len(bandwidth)
    return AttentionPattern(
        node=onnx.NodeProto(name="attention"),
        replaced=(),
        tokens="x",
        merged="y",
        weight=np.zeros((2, 6 * heads)),
        bias=np.zeros(6 * heads),
        heads=heads,
        scale=1.0,
        range_kernel="dot",
        spatial_kernel=spatial_kernel,  # type: ignore[arg-type]
        query_prefix=prefix,
        key_prefix=prefix,
        positions=(positions, positions),
        bandwidth=bandwidth if spatial_kernel == "gaussian" else None,
    )


def products(made: AttentionPattern, dtype: type) -> np.ndarray:
    """Dot products added up column by column, as a matrix product does."""
    queries, keys = (side.astype(dtype).transpose(1, 0, 2) for side in spatial_feature_map(made))
    total = np.zeros((queries.shape[0], queries.shape[1], keys.shape[1]), dtype)
    for column in range(queries.shape[-1]):
        total += queries[:, :, column, None] * keys[:, None, :, column]
    return total


def grid(height: int, width: int, prefix: int) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    placed = np.stack([rows.ravel(), columns.ravel()], -1) - [(height - 1) / 2, (width - 1) / 2]
    return np.concatenate([np.full((prefix, 2), 1e3), placed])


@settings(max_examples=60, deadline=None)
@given(
    coordinates=st.integers(1, 3),
    tokens=st.integers(2, 12),
    prefix=st.integers(0, 2),
    seed=st.integers(0, 1000),
    sigma=st.floats(0.2, 50.0),
)
def test_columns_are_the_gaussian_at_any_positions(
    coordinates: int, tokens: int, prefix: int, seed: int, sigma: float
) -> None:
    positions = np.random.default_rng(seed).uniform(-5, 5, (prefix + tokens, coordinates))
    made = site(positions, np.array([sigma, 2 * sigma, np.inf]), prefix)
    mask = spatial_mask(made)
    np.testing.assert_allclose(products(made, np.float64), mask, atol=1e-9 * (1 + abs(mask).max()))


@pytest.mark.parametrize("size", [8, 14, 32])
@pytest.mark.parametrize("sigma", [1.0, 2.3, 4.1])
def test_on_a_grid_float32_loses_nothing_to_cancellation(size: int, sigma: float) -> None:
    # What counts is the error near the query, where the weight is.
    made = site(grid(size, size, 1), np.array([sigma]), 1)
    mask = spatial_mask(made)
    error = np.abs(products(made, np.float32) - mask)
    near = mask > -8
    assert error[near].max() < 5e-6


def test_without_the_split_cancellation_would_show() -> None:
    positions = grid(32, 32, 0) / 1.1
    p = positions.astype(np.float32)
    square = (np.square(p).sum(-1) / 2).astype(np.float32)
    naive = (p @ p.T - square[:, None]) - square[None, :]
    mask = spatial_mask(site(grid(32, 32, 0), np.array([1.1]), 0))[0]
    near = mask > -8
    split = products(site(grid(32, 32, 0), np.array([1.1]), 0), np.float32)[0]
    assert np.abs(naive - mask)[near].max() > 5 * np.abs(split - mask)[near].max()


def test_learned_features_of_prefix_tokens_are_left_out() -> None:
    features = np.random.default_rng(0).standard_normal((2, 5, 3))
    made = site(features, np.ones(2), 1, "dot")
    np.testing.assert_allclose(products(made, np.float64), spatial_mask(made))
    assert not products(made, np.float64)[:, 0].any()
