"""The generalized residual connection is the line that its docstring says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilateral_export.models.residual import (
    PRESETS,
    Coefficients,
    GeneralizedResidual,
    ResidualConfig,
)


def test_the_standard_residual_adds_the_filtered_input() -> None:
    x, x0 = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    connection = GeneralizedResidual(ResidualConfig())
    assert torch.equal(connection(x, x0, torch.sin), x + torch.sin(x))
    assert not list(connection.parameters())


@settings(deadline=None, max_examples=30)
@given(values=st.tuples(*[st.floats(-2, 2)] * 5))
def test_learned_coefficients_weigh_every_term(values: tuple[float, ...]) -> None:
    x, x0 = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    connection = GeneralizedResidual(ResidualConfig(learned=True)).double()
    connection.load_state_dict({"coefficients": torch.tensor(values, dtype=torch.float64)})
    a, b, c, d, e = values
    expected = a * x + b * torch.tanh(c * x + d * x0) + e * x0
    torch.testing.assert_close(connection(x, x0, torch.tanh), expected)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_start_the_learned_coefficients(preset: str) -> None:
    connection = GeneralizedResidual(
        ResidualConfig.model_validate({"preset": preset, "learned": True})
    )
    assert isinstance(connection.coefficients, torch.Tensor)
    assert Coefficients(*connection.coefficients.tolist()) == PRESETS[preset]


def test_boosting_presets_recover_what_a_linear_filter_removes() -> None:
    """Iterating twicing or SOS with a contracting linear filter approaches its fixed point.

    For f = W x: twicing x' = x + W (x0 - x) has the fixed point x0; SOS x' = W (x0 + x) - x has
    (2 - W)^-1 W x0.
    """
    filter_matrix = torch.diag(torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64))
    x0 = torch.tensor([[[1.0, -2.0, 3.0]]], dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    fixed_points = {
        "twicing": x0,
        "sos": x0 @ torch.linalg.inv(2 * identity - filter_matrix) @ filter_matrix,
    }
    for preset, fixed_point in fixed_points.items():
        connection = GeneralizedResidual(ResidualConfig.model_validate({"preset": preset}))
        x = x0 @ filter_matrix
        for _ in range(200):
            x = connection(x, x0, lambda u: u @ filter_matrix)
        torch.testing.assert_close(x, fixed_point)
