"""Attention problems, and their answer by brute force in float64, written apart from all others."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bilateral_export.op.contract import RangeKernel, SpatialKernel
from bilateral_export.op.kernel.launch import INTERPRETED, bilateral_attention_forward
from bilateral_export.op.kernel.launch_config import LaunchConfig
from bilateral_export.op.operands import Operands

# The interpreter takes tensors of a GPU too, and then nothing is run there.
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
# Small tiles, so that small problems have many of every kind.
SMALL = LaunchConfig(block_m=32, block_n=16, num_warps=4, num_stages=2)


@dataclass(frozen=True)
class Problem(Operands):
    scale: float = 0.25

    def with_(self, **changes: Any) -> Problem:
        return replace(self, **changes)

    def on_device(self) -> Operands:
        return self.map(lambda tensor: tensor.to(DEVICE))

    def fused(self, configuration: LaunchConfig | None = SMALL, **options: Any) -> Tensor:
        return bilateral_attention_forward(
            self.on_device(), configuration=configuration, **options
        ).cpu()

    def exact(self) -> Tensor:
        """One query at a time, every term of the definition written out, nothing cancelled."""
        batch, heads, n_query, width = self.query.shape
        n_key = self.key.shape[2]
        output = torch.zeros(batch, heads, n_query, width, dtype=torch.float64)
        for b in range(batch):
            for h in range(heads):
                for i in range(n_query):
                    seen = min(n_key, i + 1 + n_key - n_query) if self.causal else n_key
                    if seen <= 0:
                        continue
                    logits = self._range(b, h, i)
                    logits += self._spatial(h, i)
                    if self.key_bias is not None:
                        logits += self.key_bias[b].double()
                    weights = torch.softmax(logits[:seen], 0)
                    output[b, h, i] = weights @ self.value[b, h, :seen].double()
        return output

    def _range(self, b: int, h: int, i: int) -> Tensor:
        query, keys = self.query[b, h, i].double(), self.key[b, h].double()
        if self.range_kernel == "dot":
            return self.scale * (keys @ query)
        return -self.scale / 2 * (query - keys).square().sum(-1)

    def _spatial(self, h: int, i: int) -> Tensor:
        n_key = self.key.shape[2]
        if i < self.query_prefix or self.query_positions is None or self.key_positions is None:
            return torch.zeros(n_key, dtype=torch.float64)
        if self.spatial_kernel == "dot":
            query, keys = self.query_positions[h, i].double(), self.key_positions[h].double()
            logits = keys @ query
        else:
            assert self.bandwidth is not None
            offset = self.query_positions[i].double() - self.key_positions.double()
            logits = -(offset / self.bandwidth[h].double()).square().sum(-1) / 2
        logits[: self.key_prefix] = 0
        return logits


def problem(
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    heads: int = 2,
    n_query: int = 40,
    n_key: int | None = None,
    width: int = 16,
    range_kernel: RangeKernel = "dot",
    spatial_kernel: SpatialKernel = "none",
    coordinates: int = 2,
    features: int = 16,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """Standard normal tokens; positions on a line, in a square or a cube of side 8."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    n_key = n_query if n_key is None else n_key
    query, key, value = (normal(batch, heads, n, width) for n in (n_query, n_key, n_key))
    spatial: dict[str, Tensor] = {}
    if spatial_kernel == "gaussian":
        spatial = {
            "query_positions": torch.rand(n_query, coordinates, generator=generator) * 8,
            "key_positions": torch.rand(n_key, coordinates, generator=generator) * 8,
            "bandwidth": torch.linspace(0.7, 3, heads),
        }
    if spatial_kernel == "dot":
        spatial = {
            "query_positions": normal(heads, n_query, features) / math.sqrt(math.sqrt(features)),
            "key_positions": normal(heads, n_key, features) / math.sqrt(math.sqrt(features)),
        }
    return Problem(
        query.to(dtype), key.to(dtype), value.to(dtype),
        scale=options.pop("scale", 1 / math.sqrt(width)),
        range_kernel=range_kernel, spatial_kernel=spatial_kernel, **spatial, **options,
    )  # fmt: skip


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of the answer."""
    assert got.shape == exact.shape
    return float((got.double() - exact).norm() / exact.norm())
