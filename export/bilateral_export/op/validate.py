"""Validation of operands against the operator's contract."""

from __future__ import annotations

import torch
from torch import Tensor

from bilateral_export.op.contract import MAX_COORDINATES, RANGE_KERNELS, SPATIAL_KERNELS
from bilateral_export.op.operands import Operands


def check_inputs(operands: Operands) -> None:
    """Check shapes, dtypes and the presence of inputs against op/README.md.

    Raises:
        ValueError: An operand does not fit; the message names it and what was expected.
    """
    query, key, value = operands.query, operands.key, operands.value
    query_positions, key_positions = operands.query_positions, operands.key_positions
    bandwidth, key_bias = operands.bandwidth, operands.key_bias
    range_kernel, spatial_kernel = operands.range_kernel, operands.spatial_kernel
    _check(range_kernel in RANGE_KERNELS, f"range_kernel {range_kernel!r}: not of {RANGE_KERNELS}")
    _check(
        spatial_kernel in SPATIAL_KERNELS,
        f"spatial_kernel {spatial_kernel!r}: not of {SPATIAL_KERNELS}",
    )
    _check(query.dim() == 4, f"query has shape {tuple(query.shape)}, expected [B, H, Nq, D]")
    batch, heads, n_query, depth = query.shape
    n_key = key.shape[2] if key.dim() == 4 else -1
    _check_shape("key", key, (batch, heads, n_key, depth))
    _check_shape("value", value, (batch, heads, n_key, depth))
    for name, tensor in (("key", key), ("value", value)):
        _check(tensor.dtype == query.dtype, f"{name} is {tensor.dtype}, query is {query.dtype}")

    with_positions = spatial_kernel != "none"
    for name, present, expected in (
        ("query_positions", query_positions is not None, with_positions),
        ("key_positions", key_positions is not None, with_positions),
        ("bandwidth", bandwidth is not None, spatial_kernel == "gaussian"),
    ):
        _check(
            present == expected,
            f"{name} is {'missing' if expected else 'given'}, but spatial_kernel is"
            f" {spatial_kernel!r}",
        )
    if query_positions is not None and key_positions is not None:
        width = query_positions.shape[-1]
        lead = () if spatial_kernel == "gaussian" else (heads,)
        _check_shape("query_positions", query_positions, (*lead, n_query, width))
        _check_shape("key_positions", key_positions, (*lead, n_key, width))
        if spatial_kernel == "gaussian":
            _check(
                1 <= width <= MAX_COORDINATES,
                f"query_positions has {width} coordinates, expected 1 to {MAX_COORDINATES}",
            )
    if bandwidth is not None:
        _check_shape("bandwidth", bandwidth, (heads,))
    if key_bias is not None:
        _check_shape("key_bias", key_bias, (batch, n_key))
    for name, optional in (
        ("query_positions", query_positions),
        ("key_positions", key_positions),
        ("bandwidth", bandwidth),
        ("key_bias", key_bias),
    ):
        _check(
            optional is None or optional.dtype in (torch.float32, torch.float64),
            f"{name} is {None if optional is None else optional.dtype}, expected torch.float32",
        )


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    _check(
        tensor.dim() == len(expected)
        and all(a == b for a, b in zip(tensor.shape, expected, strict=True)),
        f"{name} has shape {tuple(tensor.shape)}, expected {expected}",
    )


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"bilateral::attention: {message}")
