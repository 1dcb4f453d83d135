"""The operator's arithmetic against a brute-force loop and against what must hold of any filter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bilateral_export.op import attention as module
from bilateral_export.op.attention import attention

SCALE = 0.3


def brute_force(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    bandwidth: Tensor | None = None,
    key_bias: Tensor | None = None,
    *,
    scale: float,
    range_kernel: str = "dot",
    spatial_kernel: str = "none",
    query_prefix: int = 0,
    key_prefix: int = 0,
    causal: bool = False,
) -> Tensor:
    """The definition of op/README.md, one pair at a time, in Python floats."""
    batch, heads, n_query, depth = query.shape
    n_key = key.shape[2]
    output = torch.zeros(batch, heads, n_query, depth, dtype=torch.float64)
    for b, h, i in np.ndindex(batch, heads, n_query):
        logits = []
        for j in range(n_key):
            q, k = query[b, h, i], key[b, h, j]
            if range_kernel == "dot":
                logit = scale * float(q @ k)
            else:
                logit = -scale / 2 * float((q - k) @ (q - k))
            if spatial_kernel != "none" and i >= query_prefix and j >= key_prefix:
                assert query_positions is not None
                assert key_positions is not None
                if spatial_kernel == "gaussian":
                    assert bandwidth is not None
                    distance = query_positions[i] - key_positions[j]
                    logit -= float(distance @ distance) / (2 * float(bandwidth[h]) ** 2)
                else:
                    logit += float(query_positions[h, i] @ key_positions[h, j])
            if causal and j > i + n_key - n_query:
                logit = -math.inf
            if key_bias is not None:
                logit += float(key_bias[b, j])
            logits.append(logit)
        weights = [math.exp(logit - max(logits)) for logit in logits]
        for j, weight in enumerate(weights):
            output[b, h, i] += weight / sum(weights) * value[b, h, j]
    return output


def operands(
    spatial_kernel: str, n_query: int, n_key: int, with_bias: bool, seed: int = 0
) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch, heads, depth = 2, 2, 4
    query_positions = key_positions = bandwidth = key_bias = None
    if spatial_kernel == "gaussian":
        query_positions, key_positions = normal(n_query, 2), normal(n_key, 2)
        bandwidth = torch.tensor([0.7, 2.0], dtype=torch.float64)
    if spatial_kernel == "dot":
        query_positions, key_positions = normal(heads, n_query, 3), normal(heads, n_key, 3)
    if with_bias:
        key_bias = torch.zeros(batch, n_key, dtype=torch.float64)
        key_bias[0, 0] = -math.inf
        key_bias[1, -1] = -1.5
    return (
        normal(batch, heads, n_query, depth),
        normal(batch, heads, n_key, depth),
        normal(batch, heads, n_key, depth),
        query_positions,
        key_positions,
        bandwidth,
        key_bias,
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("spatial_kernel", ["none", "gaussian", "dot"])
@pytest.mark.parametrize("range_kernel", ["dot", "gaussian"])
def test_every_option_matches_the_definition(
    range_kernel: str, spatial_kernel: str, with_bias: bool, causal: bool
) -> None:
    inputs = operands(spatial_kernel, n_query=3, n_key=5, with_bias=with_bias)
    options = {
        "scale": SCALE,
        "range_kernel": range_kernel,
        "spatial_kernel": spatial_kernel,
        "query_prefix": 1,
        "key_prefix": 2,
        "causal": causal,
    }
    torch.testing.assert_close(attention(*inputs, **options), brute_force(*inputs, **options))


def test_queries_in_chunks_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = operands("gaussian", n_query=7, n_key=7, with_bias=False)
    options = {"scale": SCALE, "spatial_kernel": "gaussian", "query_prefix": 2, "key_prefix": 2}
    whole = attention(*inputs, **options, causal=True)
    monkeypatch.setattr(module, "MAX_LOGITS", 3 * 2 * 2 * 7)
    torch.testing.assert_close(attention(*inputs, **options, causal=True), whole)


def test_without_a_spatial_kernel_it_is_scaled_dot_product_attention() -> None:
    query, key, value, *_ = operands("none", n_query=6, n_key=6, with_bias=False)
    assert query is not None
    assert key is not None
    assert value is not None
    expected = F.scaled_dot_product_attention(query, key, value, scale=SCALE)
    torch.testing.assert_close(attention(query, key, value, scale=SCALE), expected)
    causal = F.scaled_dot_product_attention(query, key, value, scale=SCALE, is_causal=True)
    torch.testing.assert_close(attention(query, key, value, scale=SCALE, causal=True), causal)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1 << 16), n=st.integers(2, 9), sigma=st.floats(0.3, 5.0))
def test_the_output_is_the_weighted_least_squares_estimate(seed: int, n: int, sigma: float) -> None:
    """Theorem 3.1: with identity projections, out_i minimises sum_j K_ij |v_j - x|^2 over x."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 1, n, 4, generator=generator, dtype=torch.float64)
    positions = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    output = attention(
        tokens,
        tokens,
        tokens,
        positions,
        positions,
        torch.tensor([sigma], dtype=torch.float64),
        scale=SCALE,
        range_kernel="gaussian",
        spatial_kernel="gaussian",
    )[0, 0]
    for i in range(n):
        differences = tokens[0, 0, i] - tokens[0, 0]
        distances = positions[i] - positions
        kernel = torch.exp(
            -SCALE / 2 * differences.square().sum(-1) - distances.square().sum(-1) / (2 * sigma**2)
        )
        # The normal equations of least squares with weights K: A^T K A x = A^T K y with A = ones.
        root = kernel.sqrt()[:, None]
        solution = torch.linalg.lstsq(root, root * tokens[0, 0]).solution[0]
        torch.testing.assert_close(output[i], solution)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1 << 16), shift=st.floats(-50, 50))
def test_moving_all_positions_changes_nothing(seed: int, shift: float) -> None:
    query, key, value, query_positions, key_positions, bandwidth, _ = operands(
        "gaussian", n_query=4, n_key=6, with_bias=False, seed=seed
    )
    assert query_positions is not None
    assert key_positions is not None
    options = {"scale": SCALE, "spatial_kernel": "gaussian"}
    here = attention(query, key, value, query_positions, key_positions, bandwidth, **options)
    there = attention(
        query, key, value, query_positions + shift, key_positions + shift, bandwidth, **options
    )
    torch.testing.assert_close(here, there)


def test_an_infinite_bandwidth_gives_plain_attention() -> None:
    query, key, value, pq, pk, _, _ = operands("gaussian", 5, 5, with_bias=False)
    infinite = torch.full((2,), math.inf, dtype=torch.float64)
    with_space = attention(query, key, value, pq, pk, infinite, scale=1, spatial_kernel="gaussian")
    assert query is not None
    assert key is not None
    assert value is not None
    torch.testing.assert_close(with_space, attention(query, key, value, scale=1))


@pytest.mark.parametrize("sigma", [1e-3, 1e-12, 1e-30])
def test_a_vanishing_bandwidth_attends_to_the_own_position(sigma: float) -> None:
    query, key, value, pq, _, _, _ = operands("gaussian", 5, 5, with_bias=False)
    tiny = torch.full((2,), sigma, dtype=torch.float32)
    assert query is not None
    assert key is not None
    assert value is not None
    assert pq is not None
    output = attention(
        query.float(),
        key.float(),
        value.float(),
        pq.float(),
        pq.float(),
        tiny,
        scale=1,
        spatial_kernel="gaussian",
    )
    torch.testing.assert_close(output, value.float())


def test_prefix_tokens_ignore_positions_whatever_their_rows_hold() -> None:
    query, key, value, pq, pk, bandwidth, _ = operands("gaussian", 5, 5, with_bias=False)
    assert pq is not None
    assert pk is not None
    options = {"scale": 1, "spatial_kernel": "gaussian", "query_prefix": 2, "key_prefix": 2}
    expected = attention(query, key, value, pq, pk, bandwidth, **options)
    elsewhere_q, elsewhere_k = pq.clone(), pk.clone()
    elsewhere_q[:2], elsewhere_k[:2] = 1e6, -1e6
    moved = attention(query, key, value, elsewhere_q, elsewhere_k, bandwidth, **options)
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    """Logits of a few hundred would lose all resolution in half precision's softmax."""
    generator = torch.Generator().manual_seed(0)
    query = (torch.randn(1, 1, 64, 16, generator=generator) * 6).to(dtype)
    key, value = (torch.randn(1, 1, 64, 16, generator=generator).to(dtype) for _ in range(2))
    output = attention(query, key, value, scale=1)
    reference = attention(query.double(), key.double(), value.double(), scale=1)
    error = (output.double() - reference).abs().max() / reference.abs().max()
    assert output.dtype == dtype
    assert error < 8 * torch.finfo(dtype).eps
