"""Attention maps of one image, their two factors, and attention rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bilateral_export.errors import UserError

Kernel = Literal["attention", "range", "spatial"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of every layer and head to one image, and its two factors.

    `attention` is the softmax over range and spatial logits together, `range` and `spatial` that
    over one of them alone: attention is their product, normalised over the keys.

    Attributes:
        attention: `[L, H, N, N]`, rows are queries and sum to 1.
        range: `[L, H, N, N]`.
        spatial: `[L, H, N, N]`; uniform where the model has no spatial kernel.
        logits: `[classes]`.
        prefix: How many of the N tokens have no place in the image; the first is the class token.
        grid: Rows and columns of patches; the other tokens, row by row.
    """

    attention: Weights
    range: Weights
    spatial: Weights
    logits: NDArray[np.float32]
    prefix: int
    grid: tuple[int, int]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.attention.shape[0]

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.attention.shape[1]

    def weights(self, kernel: Kernel) -> Weights:
        """Return one of the three, `[L, H, N, N]`."""
        chosen: Weights = getattr(self, kernel)
        return chosen

    def token(self, patch: tuple[int, int] | None) -> int:
        """Return the index of a patch's token, given its row and column, or of the class token.

        Raises:
            UserError: The image has no such patch.
        """
        if patch is None:
            return 0
        row, column = patch
        rows, columns = self.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise UserError(
                f"there is no patch {row},{column}",
                f"Rows go from 0 to {rows - 1}, columns from 0 to {columns - 1}.",
            )
        return self.prefix + row * columns + column

    def check_layer(self, layer: int) -> int:
        """Return the layer's index from 0; negative ones count from the last.

        Raises:
            UserError: The model has no such layer.
        """
        if not -self.layers <= layer < self.layers:
            raise UserError(
                f"there is no layer {layer}", f"Layers go from 0 to {self.layers - 1}; -1 is last."
            )
        return layer % self.layers

    def on_grid(self, row: Weights) -> Weights:
        """Return what lies on the image of a token's weights `[..., N]`: `[..., rows, columns]`."""
        return row[..., self.prefix :].reshape(*row.shape[:-1], *self.grid)


def rollout(weights: Weights) -> Weights:
    """Return attention through all layers, `[N, N]` (Abnar and Zuidema, 2020).

    Heads are averaged, half of each layer is its residual connection, and layers are multiplied.
    The half is the method's convention: learned residual coefficients do not enter.

    Args:
        weights: `[L, H, N, N]`, rows summing to 1.

    Returns:
        How much each token (row) takes from each input token (column); rows sum to 1.
    """
    identity = np.eye(weights.shape[-1], dtype=np.float32)
    through = identity
    for layer in weights.mean(axis=1):
        through = (0.5 * layer + 0.5 * identity) @ through
    return through
