"""Attention maps of the PyTorch model, recorded at each call of the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bilateral_export.explain.maps import AttentionMaps
from bilateral_export.models.family import ImageTokens
from bilateral_export.op.attention import spatial_logits
from bilateral_export.op.operands import Operands


def torch_maps(model: nn.Module, tokens: ImageTokens, image: NDArray[np.float32]) -> AttentionMaps:
    """Return the maps of one run of an image classifier.

    Args:
        model: The model, in evaluation mode.
        tokens: How its image becomes tokens.
        image: Its input `[C, H, W]`.
    """
    with torch.inference_mode(), _Watch() as watch:
        logits = model(torch.from_numpy(image)[None])
    attention, range_, spatial = (
        torch.stack(layers).float().numpy() for layers in zip(*watch.seen, strict=True)
    )
    return AttentionMaps(
        attention=attention,
        range=range_,
        spatial=spatial,
        logits=logits[0].float().numpy(),
        prefix=tokens.prefix,
        grid=tokens.grid,
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.bilateral.attention.default:
            self.seen.append(_kernels(Operands(*args)))
        return func(*args, **(kwargs or {}))


def _kernels(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Return attention, range and spatial weights of one call at batch 1, each `[H, N, N]`."""
    assert operands.key_bias is None
    assert not operands.causal
    key = operands.key[0]
    similarity = operands.scale * (operands.query[0] @ key.transpose(-1, -2)).float()
    if operands.range_kernel == "gaussian":
        norms = key.float().square().sum(-1)[:, None, :]
        similarity = similarity - 0.5 * operands.scale * norms
    places = torch.zeros_like(similarity)
    if operands.spatial_kernel != "none":
        assert operands.query_positions is not None
        assert operands.key_positions is not None
        places = places + spatial_logits(
            operands.query_positions,
            operands.key_positions,
            operands.bandwidth,
            operands.spatial_kernel,
        )
        places[:, : operands.query_prefix] = 0
        places[:, :, : operands.key_prefix] = 0
    return (similarity + places).softmax(-1), similarity.softmax(-1), places.softmax(-1)
