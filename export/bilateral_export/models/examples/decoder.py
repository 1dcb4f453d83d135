"""A GPT-like decoder of any length whose attention favours nearby words."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from bilateral_export import ModelDefinition, TensorSpec, scaled_dot_product_attention

VOCABULARY, CONTEXT, DIM, HEADS, DEPTH = 100, 32, 32, 4, 2


class CausalAttention(nn.Module):
    """Causal attention written with `scaled_dot_product_attention`, as most decoders are."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        # One sigma per head, in words. By these two names export keeps them in float32.
        self.log_bandwidth = nn.Parameter(torch.linspace(math.log(2), math.log(16), HEADS))
        self.register_buffer("positions", torch.arange(CONTEXT)[:, None].float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens `[B, N, dim]`."""
        batch, length, _ = x.shape
        query, key, value = (
            project(x).view(batch, length, HEADS, DIM // HEADS).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        heads = scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            positions=self.positions[:length],
            bandwidth=self.log_bandwidth.exp(),
        )
        return cast(Tensor, self.out(heads.transpose(1, 2).flatten(2)))


class Decoder(nn.Module):
    """Token ids in, logits of the word after each of them out; one table embeds and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, DIM)
        self.place = nn.Embedding(CONTEXT, DIM)
        self.attention = nn.ModuleList(CausalAttention() for _ in range(DEPTH))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))
            for _ in range(DEPTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2 * DEPTH + 1))
        self.score = nn.Linear(DIM, VOCABULARY, bias=False)
        self.score.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[B, N, vocabulary]` of token ids `[B, N]`."""
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        for layer, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = x + attention(self.norms[2 * layer](x))
            x = x + mlp(self.norms[2 * layer + 1](x))
        return cast(Tensor, self.score(self.norms[-1](x)))


def build() -> ModelDefinition:
    """Return the decoder for sequences of 1 to 32 tokens."""
    return ModelDefinition(
        module=Decoder(),
        inputs=[TensorSpec("tokens", "int64", ("batch", "length"))],
        outputs=["logits"],
        sizes={"length": (1, CONTEXT)},
        values={"tokens": (0, VOCABULARY)},
    )
