"""The generalized residual connection (GRC): image boosting's way of adding a filter's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

Preset = Literal["standard", "twicing", "osher", "sos", "reinjection"]


class Coefficients(NamedTuple):
    """`x' = a x + b f(c x + d x0) + e x0`."""

    a: float
    b: float
    c: float
    d: float
    e: float


# x is the running estimate, x0 the noisy image (here: the embedded tokens), f the filter.
PRESETS: dict[Preset, Coefficients] = {
    "standard": Coefficients(1, 1, 1, 0, 0),
    # Tukey's twicing, iterated as L2 boosting: filter the residual, add it.
    "twicing": Coefficients(1, 1, -1, 1, 0),
    # Osher et al.: filter the image plus the accumulated residual, here its latest term only:
    # x0 + (x0 - x).
    "osher": Coefficients(0, 1, -1, 2, 0),
    # Strengthen, operate, subtract (Romano and Elad): strengthen x0 by x, filter, take x away.
    "sos": Coefficients(-1, 1, 1, 1, 0),
    # The input is injected again at every block.
    "reinjection": Coefficients(1, 1, 1, 0, 1),
}


class ResidualConfig(BaseModel):
    """Which coefficients a model's residual connections start from, and whether they learn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset = "standard"
    learned: bool = False


class GeneralizedResidual(nn.Module):
    """One residual connection: fixed coefficients cost nothing where they are 0 or 1."""

    coefficients: Tensor | Coefficients

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        preset = PRESETS[config.preset]
        self.coefficients = (
            nn.Parameter(torch.tensor(preset, dtype=torch.float32)) if config.learned else preset
        )

    def forward(self, x: Tensor, x0: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `a x + b f(c x + d x0) + e x0`, in the shape `[B, N, dim]` of `x` and `x0`."""
        a, b, c, d, e = self.coefficients
        return _sum((a, x), (b, f(_sum((c, x), (d, x0)))), (e, x0))


def _sum(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    total: Tensor | None = None
    for factor, tensor in terms:
        if not isinstance(factor, Tensor) and factor == 0:
            continue
        term = tensor if not isinstance(factor, Tensor) and factor == 1 else factor * tensor
        total = term if total is None else total + term
    assert total is not None
    return total
