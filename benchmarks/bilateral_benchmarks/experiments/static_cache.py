"""The same language model with a static key/value cache, as a contender for ONNX Runtime.

Keys and values have the whole context from the start; new ones are written at their columns, and a
mask hides what is not written yet. The caches never leave the runtime (IO binding).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from bilateral_export.models.language import LanguageModel, LanguageModelConfig
from bilateral_export.tensors import Array


class StaticCacheModel(nn.Module):
    """A language model whose texts all have the same number of tokens.

    Args:
        model: The model; its parameters are shared.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, columns: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-probabilities `[B, words]` after the last token, and the caches.

        Args:
            tokens: `[B, N]`, int64.
            columns: `[N]`, int64: their positions.
            keys: `[B, depth, heads, context, dim / heads]`.
            values: The same.
        """
        model = self.model
        x0 = model.token_embed(tokens) * math.sqrt(model.config.dim)
        x0 = x0 + model.sinusoids.index_select(0, columns)
        x, new = x0, []
        blocks: list[Any] = list(model.blocks)
        for number, block in enumerate(blocks):
            attention = _StaticAttention(block.attn, model.positions)
            old = (keys[:, number], values[:, number])
            x = block.residual1(
                x, x0, lambda u, b=block, a=attention, c=old: a(b.norm1(u), columns, *c)
            )
            x = block.residual2(x, x0, lambda u, b=block: b.mlp(b.norm2(u)))
            new.append((attention.keys, attention.values))
        log_probabilities = model.softmax(model.norm(x[:, -1]), model.token_embed.weight)
        stacked = (torch.stack(caches, dim=1) for caches in zip(*new, strict=True))
        return (log_probabilities, *stacked)


class _StaticAttention:
    """One block's attention in plain operators, to all columns up to each token's own."""

    def __init__(self, attention: Any, positions: Tensor) -> None:
        self._attention, self._positions = attention, positions

    def __call__(self, x: Tensor, columns: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        one = self._attention
        query, key, value = one.project(x)
        self.keys = keys.index_copy(2, columns, key)
        self.values = values.index_copy(2, columns, value)
        logits = (query * one.scale) @ self.keys.transpose(2, 3)
        if one.config.range_kernel == "gaussian":
            logits = logits - 0.5 * one.scale * self.keys.square().sum(-1).unsqueeze(2)
        everywhere = torch.arange(keys.shape[2])
        if one.config.spatial_kernel == "gaussian":
            distance = (columns[:, None] - everywhere[None]).float()
            logits = logits - 0.5 * (distance / one.log_bandwidth.exp()[:, None, None]).square()
        hidden = everywhere[None] > columns[:, None]
        weights = logits.masked_fill(hidden, -math.inf).softmax(-1)
        output: Tensor = one.proj((weights @ self.values).transpose(1, 2).flatten(2))
        return output


class StaticCacheRunner:
    """ONNX Runtime on that graph; texts of a batch advance together.

    Args:
        model: In float32, on the CPU.
        folder: For the file.
        threads: ONNX Runtime's.
    """

    def __init__(self, model: LanguageModel, folder: Path, threads: int) -> None:
        self.config: LanguageModelConfig = model.config
        path = folder / "static_cache.onnx"
        _export(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def begin(self, tokens: Array) -> Array:
        """Read prompts `[B, N]`; return the log-probabilities `[B, words]` after them."""
        empty = np.zeros(_cache_shape(self.config, len(tokens)), np.float32)
        self._caches = [onnxruntime.OrtValue.ortvalue_from_numpy(empty) for _ in range(2)]
        self._length = 0
        return self.read(tokens)

    def read(self, tokens: Array) -> Array:
        """Read further tokens `[B, N]`; return the log-probabilities `[B, words]` after them."""
        columns = np.arange(self._length, self._length + tokens.shape[1])
        self._length += tokens.shape[1]
        binding = self._session.io_binding()
        binding.bind_cpu_input("tokens", np.ascontiguousarray(tokens))
        binding.bind_cpu_input("columns", columns)
        binding.bind_ortvalue_input("keys", self._caches[0])
        binding.bind_ortvalue_input("values", self._caches[1])
        for name in ("log_probabilities", "new_keys", "new_values"):
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        after, *self._caches = binding.get_outputs()
        found: Array = after.numpy()
        return found


def _cache_shape(config: LanguageModelConfig, batch: int) -> tuple[int, ...]:
    return (batch, config.depth, config.heads, config.context, config.dim // config.heads)


def _export(model: LanguageModel, path: Path) -> None:
    cache = torch.zeros(_cache_shape(model.config, 2))
    example = (torch.zeros(2, 3, dtype=torch.int64), torch.arange(3), cache, cache.clone())
    batch = {0: "batch"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            StaticCacheModel(model).eval(),
            example,
            dynamo=True,
            verbose=False,
            input_names=["tokens", "columns", "keys", "values"],
            output_names=["log_probabilities", "new_keys", "new_values"],
            dynamic_shapes=({0: "batch", 1: "length"}, {0: "length"}, batch, batch),
        )
    assert program is not None
    program.save(path)
