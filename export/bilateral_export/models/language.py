"""The causal language model: bilateral attention with GRC, and a key/value cache in the graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bilateral_export.models.attention import BilateralAttention
from bilateral_export.models.block import NORM_EPS, Block, Mlp
from bilateral_export.models.bounds import Depth, Heads, Tokens, Vocabulary, Width
from bilateral_export.models.family import Family, FamilyConfig
from bilateral_export.preprocessing import Preprocessing, TextPreprocessing
from bilateral_export.tensors import Array, TensorSpec

_LARGEST_TABLE = 1 << 28


class LanguageModelConfig(FamilyConfig):
    """Sizes and kernels of a language model. The defaults are the small one of WikiText-103.

    Attributes:
        vocabulary: Number of words.
        context: Longest window, the cached tokens and the new ones together.
        hidden: Width of the feed-forward layers.
        cutoffs: Where the adaptive softmax (Grave et al., 2017) starts a cluster of rarer words;
            empty for a plain softmax. Words are numbered by falling frequency then.
    """

    generative: ClassVar[bool] = True
    family: Literal["language-model"] = "language-model"
    vocabulary: Vocabulary = 267_735
    context: Tokens = Field(default=256, gt=1)
    dim: Width = 128
    depth: Depth = 16
    heads: Heads = 8
    hidden: Width = 2048
    cutoffs: tuple[int, ...] = Field(default=(20_000, 40_000, 200_000), max_length=64)

    @model_validator(mode="after")
    def _sizes_fit(self) -> LanguageModelConfig:
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} is not a multiple of 2 and of heads {self.heads}")
        if self.context * self.dim > _LARGEST_TABLE:  # of sinusoids, which no weights bound
            raise ValueError(f"context {self.context} times dim {self.dim} is above 2**28")
        bounds = (0, *self.cutoffs, self.vocabulary)
        if any(low >= high for low, high in itertools.pairwise(bounds)):
            raise ValueError(f"cutoffs {self.cutoffs} do not rise below {self.vocabulary} words")
        return self

    @property
    def cache_shape(self) -> tuple[int | str, ...]:
        """Of the cached keys, and of the cached values: the batch comes first, for batching."""
        return ("batch", self.depth, self.heads, "past", self.dim // self.heads)

    @property
    def aligns(self) -> bool:
        """Whether one batch can hold texts whose pasts have different lengths.

        Features of positions are one table for all texts of a batch; a column means the same
        position in each.
        """
        return self.attention.spatial_kernel != "dot"

    def check_preprocessing(self, how: Preprocessing) -> None:
        """Check that a tokenizer has as many words, and as long a context, as the model."""
        if not isinstance(how, TextPreprocessing):
            return super().check_preprocessing(how)
        if (len(how.vocabulary), how.context) != (self.vocabulary, self.context):
            raise ValueError(
                f"the tokenizer has {len(how.vocabulary)} words and context {how.context},"
                f" the model {self.vocabulary} and {self.context}"
            )
        return None


class LanguageModel(Family):
    """Token ids and a cache in; log-probabilities and the longer cache out."""

    config: LanguageModelConfig

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        # One table embeds the words and, transposed, scores them.
        self.token_embed = nn.Embedding(config.vocabulary, config.dim)
        nn.init.normal_(self.token_embed.weight, std=config.dim**-0.5)
        self.blocks = nn.ModuleList(
            Block(CausalAttention(config), Mlp(config.dim, config.hidden, F.relu), config.residual)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.softmax = AdaptiveSoftmax(config)
        table = sinusoids(config.context, config.dim)
        self.register_buffer("sinusoids", table, persistent=False)
        self.register_buffer("positions", torch.arange(config.context)[:, None].float(), False)
        self.sinusoids: Tensor
        self.positions: Tensor

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return likelihoods, the next word's distribution and the cache after new tokens.

        Texts of a batch may have pasts of different lengths: each is aligned to the right, and
        `starts` says where it begins.

        Args:
            tokens: `[B, N]`, int64.
            targets: `[B, M]`, int64, M from 1 to N: the words that follow the last M tokens, whose
                likelihood is wanted. The softmax over all words is computed for these M only.
            past_keys: `[B, depth, heads, past, dim / heads]`, float32; past may be 0.
            past_values: The same of the values.
            starts: `[B, 1]`, int64, from 0 to past: the column of the past where a text begins, its
                position 0; those before are ignored, but must be finite. None: 0 for each.

        Returns:
            log_likelihood: `[B, M]`, of each target given everything before it (natural logarithm).
            log_probabilities: `[B, vocabulary]`, of the word after the last token.
            keys, values: The cache of past + N tokens.
        """
        past, length = past_keys.shape[3], tokens.shape[1]
        columns = torch.arange(past + length, device=tokens.device)
        # The Gaussian kernel sees differences only, which the alignment keeps.
        key_positions = self.positions.index_select(0, columns)
        query_positions = key_positions[past:]
        dtype = self.token_embed.weight.dtype
        key_bias, placed = None, columns[past:]
        if starts is not None:
            key_bias = torch.where(columns < starts, -math.inf, 0.0)
            placed = placed - starts

        x0 = self.token_embed(tokens) * math.sqrt(self.config.dim)
        x0 = x0 + F.embedding(placed, self.sinusoids)
        x, caches = x0, Caches(past_keys.to(dtype), past_values.to(dtype))
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, x0, query_positions, key_positions, cache, key_bias)
        last = torch.arange(length - targets.shape[1], length, device=tokens.device)
        x = self.norm(x).index_select(1, last)
        log_probabilities = self.softmax(x, self.token_embed.weight)
        likelihood = log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        keys, values = caches.stacked()
        return (
            likelihood,
            log_probabilities[:, -1],
            keys.to(past_keys.dtype),
            values.to(past_values.dtype),
        )

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's inputs."""
        cache = self.config.cache_shape
        starts = (TensorSpec("starts", "int64", ("batch", 1)),) if self.config.aligns else ()
        return (
            TensorSpec("tokens", "int64", ("batch", "length")),
            TensorSpec("targets", "int64", ("batch", "scored")),
            TensorSpec("past_keys", "float32", cache),
            TensorSpec("past_values", "float32", cache),
            *starts,
        )

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's outputs."""
        batch, depth, heads, _, head_dim = self.config.cache_shape
        cache = (batch, depth, heads, "total", head_dim)
        return (
            TensorSpec("log_likelihood", "float32", ("batch", "scored")),
            TensorSpec("log_probabilities", "float32", ("batch", self.config.vocabulary)),
            TensorSpec("keys", "float32", cache),
            TensorSpec("values", "float32", cache),
        )

    def corners(self) -> tuple[dict[str, int], ...]:
        """Return the whole context, one token after the longest past, and one without any.

        Then the whole context of which only the last token is scored, and the default.
        """
        context = self.config.context
        longest = {"past": 0, "length": context}
        one = {"past": context - 1, "length": 1}
        return longest, one, {"past": 0, "length": 1}, {**longest, "scored": 1}, {}

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Return random valid inputs: `length` new tokens after `past` ones, `scored` of them.

        By default they fill a half and a quarter of the context, and all are scored. The first
        text has the whole past, each other one a random part of it.

        Args:
            batch: Number of inputs.
            generator: Source of randomness.
            dims: Sizes of the other dynamic dimensions, by name.
        """
        c = self.config
        length = dims.get("length", c.context // 2)
        past = dims.get("past", c.context // 4)
        cache = (batch, c.depth, c.heads, past, c.dim // c.heads)
        scored = dims.get("scored", length)
        words = generator.integers(0, c.vocabulary, (batch, length + 1))
        arrays: dict[str, Array] = {
            "tokens": words[:, :-1],
            "targets": words[:, -scored:],
            "past_keys": generator.standard_normal(cache, dtype=np.float32),
            "past_values": generator.standard_normal(cache, dtype=np.float32),
        }
        if c.aligns:
            starts = generator.integers(0, past + 1, (batch, 1))
            starts[0] = 0
            arrays["starts"] = starts
        return arrays


class Cache:
    """Keys and values of one block: those of the past, then those of the new tokens too."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values, after appending `[B, H, N, D]`."""
        self.keys = torch.cat([self.keys, key], dim=2)
        self.values = torch.cat([self.values, value], dim=2)
        return self.keys, self.values


class Caches:
    """The caches of all blocks, as one tensor outside and one object per block inside."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._caches = [Cache(*pair) for pair in zip(keys.unbind(1), values.unbind(1), strict=True)]

    def __iter__(self) -> Iterator[Cache]:
        return iter(self._caches)

    def __len__(self) -> int:
        return len(self._caches)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return keys and values `[B, depth, H, past + N, D]`."""
        return (
            torch.stack([cache.keys for cache in self._caches], dim=1),
            torch.stack([cache.values for cache in self._caches], dim=1),
        )


class CausalAttention(BilateralAttention):
    """Bilateral self-attention to the past, out of a cache, and to the new tokens before."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config.dim, config.heads, config.context, 0, config.attention, causal=True)
        if config.attention.spatial_kernel == "dot":
            # p_i.p_j of sinusoids depends on i - j only: training starts from a shift-invariant
            # kernel, whose value at 0 is 1.
            width = config.attention.position_features
            features = sinusoids(config.context, width + width % 2)[:, :width]
            features = features * math.sqrt(2 / width)
            self.query_features.data.copy_(features.expand_as(self.query_features))
            self.key_features.data.copy_(features.expand_as(self.key_features))

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        cache: Cache,
        key_bias: Tensor | None,
    ) -> Tensor:
        """Return `[B, N, dim]` for new tokens `[B, N, dim]`; the cache grows by them."""
        query, key, value = self.project(x)
        keys, values = cache.extend(key, value)
        return self.attend(query, keys, values, query_positions, key_positions, key_bias)


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities of words: frequent ones directly, rarer ones through their cluster."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.bounds = (0, *config.cutoffs, config.vocabulary)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))
        if config.cutoffs:
            self.clusters = nn.Linear(config.dim, len(config.cutoffs))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return `[..., words]`, float32, of tokens `[..., dim]` and vectors `[words, dim]`."""
        head, *tails = (
            _wide(_linear(x, weight[low:high], self.bias[low:high]))
            for low, high in itertools.pairwise(self.bounds)
        )
        if not tails:
            return head.log_softmax(-1)
        head = torch.cat([head, _wide(self.clusters(x))], dim=-1).log_softmax(-1)
        shortlist, clusters = torch.split(head, [self.bounds[1], len(tails)], dim=-1)
        rarer = [
            logits.log_softmax(-1) + cluster
            for logits, cluster in zip(tails, torch.split(clusters, 1, dim=-1), strict=True)
        ]
        return torch.cat([shortlist, *rarer], dim=-1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `x W^T + b`; in a graph, whose weights are constant, the bias is a column of them.

    To add it to the logits of a large vocabulary takes a quarter of the head's time for eight rows.
    """
    if not torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 1), value=1.0), torch.cat([weight, bias[:, None]], dim=1))


def sinusoids(length: int, dim: int) -> Tensor:
    """Return sines, then cosines, of positions (Vaswani et al., 2017): `[length, dim]`."""
    frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _wide(logits: Tensor) -> Tensor:
    """Return at least float32: the sum over a large vocabulary needs it."""
    return logits if logits.dtype == torch.float64 else logits.float()
