"""Bilateral self-attention: a range kernel on tokens times a spatial kernel on positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from bilateral_export.models.bounds import Features
from bilateral_export.op import torch_op  # registers torch.ops.bilateral.attention
from bilateral_export.op.contract import RangeKernel, SpatialKernel

__all__ = ["AttentionConfig", "BilateralAttention", "grid_positions"]


Bandwidth = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AttentionConfig(BaseModel):
    """The two kernels of a model's attention. The default is plain attention.

    Attributes:
        range_kernel: Similarity of tokens.
        spatial_kernel: Similarity of positions.
        bandwidth: Initial sigmas of the first and last head, in units of the coordinates (patches);
            the heads between are spaced geometrically. Trained per head. Gaussian kernel only.
        position_features: Learned features P per head and position. Dot kernel only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    range_kernel: RangeKernel = "dot"
    spatial_kernel: SpatialKernel = "none"
    bandwidth: tuple[Bandwidth, Bandwidth] = (1.0, 4.0)
    position_features: Features = 16


class BilateralAttention(nn.Module):
    """Multi-head bilateral self-attention on tokens `[B, N, dim]`.

    Parameter names follow timm's ViT (`qkv`, `proj`), so that a plain DeiT loads unchanged.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tokens: int,
        prefix: int,
        config: AttentionConfig,
        causal: bool = False,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.prefix = prefix
        self.causal = causal
        self.config = config
        self.scale = 1.0 / math.sqrt(dim // heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        # Layer norms of each head's queries and keys (Dehghani et al., 2023), where they have any.
        self.qk_norm = qk_norm_eps is not None
        if qk_norm_eps is not None:
            self.q_norm = nn.LayerNorm(dim // heads, eps=qk_norm_eps)
            self.k_norm = nn.LayerNorm(dim // heads, eps=qk_norm_eps)
        self.proj = nn.Linear(dim, dim)
        if config.spatial_kernel == "gaussian":
            first, last = (math.log(sigma) for sigma in config.bandwidth)
            self.log_bandwidth = nn.Parameter(torch.linspace(first, last, heads))
        if config.spatial_kernel == "dot":
            shape = (heads, tokens, config.position_features)
            self.query_features = nn.Parameter(torch.randn(shape) * 0.02)
            self.key_features = nn.Parameter(torch.randn(shape) * 0.02)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        key_bias: Tensor | None = None,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the attended tokens.

        Args:
            x: Tokens `[B, N, dim]`.
            positions: Coordinates `[N, C]`, float32; rows of prefix tokens are ignored.
            key_bias: `[B, N]`, float32; -inf removes a padded token.
            resample: Moves learned features `[H, table, P]` to the tokens' grid `[H, N, P]`, where
                it is another than the one they were learned on.

        Returns:
            `[B, N, dim]`.
        """
        query, key, value = self.project(x)
        return self.attend(query, key, value, positions, positions, key_bias, resample)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of tokens `[B, N, dim]`, each `[B, H, N, dim / H]`."""
        batch, tokens, dim = x.shape
        query, key, value = (
            part.view(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        key_bias: Tensor | None = None,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return what the last Nq positions of a sequence read from all its Nk positions.

        Args:
            query: `[B, H, Nq, D]`; the other Nk - Nq positions came before (a cache).
            key: `[B, H, Nk, D]`.
            value: `[B, H, Nk, D]`.
            query_positions: Coordinates `[Nq, C]`, float32.
            key_positions: Coordinates `[Nk, C]`, float32.
            key_bias: `[B, Nk]`, float32.
            resample: As in `forward`; for Nq = Nk.

        Returns:
            `[B, Nq, H * D]`, projected.
        """
        placed = self._spatial(query_positions, key_positions, resample)
        output = torch_op.bilateral_attention(
            query,
            key,
            value,
            *placed,
            key_bias,
            self.scale,
            self.config.range_kernel,
            self.config.spatial_kernel,
            self.prefix,
            self.prefix,
            self.causal,
        )
        return cast(Tensor, self.proj(output.transpose(1, 2).flatten(2)))

    def _spatial(
        self,
        query_positions: Tensor,
        key_positions: Tensor,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        match self.config.spatial_kernel:
            case "gaussian":
                return query_positions, key_positions, self.log_bandwidth.exp()
            case "dot" if resample is not None:
                return resample(self.query_features), resample(self.key_features), None
            case "dot":
                keys = torch.arange(key_positions.shape[0], device=key_positions.device)
                queries = keys[-query_positions.shape[0] :]
                return (
                    self.query_features.index_select(1, queries),
                    self.key_features.index_select(1, keys),
                    None,
                )
            case "none":
                return None, None, None


def grid_positions(height: int, width: int, prefix: int) -> Tensor:
    """Return coordinates of a grid of patches after `prefix` tokens that have none.

    Centred on the grid, because rounding grows with the distance from the origin and the spatial
    kernel sees differences only.

    Returns:
        `[prefix + height * width, 2]`, float32: row and column in patches.
    """
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.cat([torch.zeros(prefix, 2), grid]).float()
