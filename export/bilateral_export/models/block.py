"""The pre-norm Transformer block with generalized residual connections, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilateral_export.models.attention import BilateralAttention
from bilateral_export.models.residual import GeneralizedResidual, ResidualConfig

NORM_EPS = 1e-6

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # the exact one, of the error function
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class Trunk(nn.ModuleList):
    """A stack of blocks, each of which also reads the tokens before the first."""

    def forward(self, x0: Tensor, *context: Any) -> Tensor:
        """Return the tokens `[B, N, dim]` after the last block; `context` as in `Block.forward`."""
        x = x0
        for block in self:
            x = block(x, x0, *context)
        return x


class Block(nn.Module):
    """Attention and MLP, each behind layer norm and a generalized residual connection."""

    def __init__(
        self,
        attn: BilateralAttention,
        mlp: Mlp,
        residual: ResidualConfig,
        norm_eps: float = NORM_EPS,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        dim = attn.proj.out_features
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.residual1 = GeneralizedResidual(residual)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()
        self.residual2 = GeneralizedResidual(residual)

    def forward(self, x: Tensor, x0: Tensor, *context: Any) -> Tensor:
        """Return the next tokens.

        Args:
            x: Tokens `[B, N, dim]`.
            x0: The tokens `[B, N, dim]` before the first block.
            context: What the attention takes besides tokens: positions, key bias or cache.

        Returns:
            `[B, N, dim]`.
        """
        x = self.residual1(x, x0, lambda u: self.ls1(self.attn(self.norm1(u), *context)))
        return cast(Tensor, self.residual2(x, x0, lambda u: self.ls2(self.mlp(self.norm2(u)))))


class LayerScale(nn.Module):
    """One learned factor per channel of a branch's output (Touvron et al., 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., dim]` for `[..., dim]`."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an activation between them: by default the exact (erf) GELU."""

    def __init__(
        self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.gelu
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., dim]` for `[..., dim]`."""
        return cast(Tensor, self.fc2(self.activation(self.fc1(x))))


class PatchEmbed(nn.Module):
    """Non-overlapping patches of an image, each projected to a token."""

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens `[B, patches, dim]` of images `[B, C, H, W]`, row by row."""
        return cast(Tensor, self.proj(image).flatten(2).transpose(1, 2))
