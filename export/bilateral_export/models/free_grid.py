"""The grid of patches where only the image says its size: coordinates, and learned tables moved.

Everything is arithmetic on tensors, so that a traced model computes it for each image: coordinates
are those of a model that was built at that size, bit for bit, and a table that was learned on one
grid is interpolated to another by one small matrix for its rows and one for its columns. Their
weights are those of PyTorch's `interpolate(mode="bicubic")`, which is what the libraries call
(checkpoint/resolution.py does so once, for one size); matrix products run in every runtime, where
ONNX's Resize with antialiasing does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# How a library interpolates learned positions to another grid.
Resampling = Literal["bicubic", "bicubic-antialias", "bicubic-corners"]

# PyTorch's coefficient of the cubic kernel: Keys' choice with antialiasing, OpenCV's without.
_SHARP, _SMOOTH = -0.75, -0.5
_REACH = 2  # of the cubic kernel, in samples


@dataclass(frozen=True)
class FreeGrid:
    """What a model knows of its grid before it sees an image.

    Attributes:
        prefix: Prefix tokens, which have no position.
        unit: Rows and columns whose patch is the unit of coordinates.
        table: Rows and columns that learned tables have.
        resampling: How tables are interpolated.
    """

    prefix: int
    unit: tuple[int, int]
    table: tuple[int, int]
    resampling: Resampling

    def at(self, rows: int, columns: int, like: Tensor) -> PlacedGrid:
        """Return the grid of an image.

        Args:
            rows: Of patches; may be symbolic.
            columns: Likewise.
            like: A tensor of the device and dtype of the weights; float64 is kept.
        """
        sizes = (rows, columns)
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        centres = [
            _coordinates(size, unit, like.device)
            for size, unit in zip(sizes, self.unit, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, 1)
        nowhere = torch.zeros(self.prefix, 2, device=like.device)
        moves = tuple(
            interpolation(size, table, self.resampling, kind, like.device)
            for size, table in zip(sizes, self.table, strict=True)
        )
        return PlacedGrid(self, torch.cat([nowhere, grid]).to(kind), (moves[0], moves[1]))


@dataclass(frozen=True)
class PlacedGrid:
    """The grid of one image.

    Attributes:
        grid: What was known before.
        positions: Coordinates `[prefix + rows * columns, 2]`, float32 (float64 for the reference).
        moves: `[rows, table rows]` and `[columns, table columns]`.
    """

    grid: FreeGrid
    positions: Tensor
    moves: tuple[Tensor, Tensor]

    def split(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return a learned table's rows of prefix tokens, and the others moved to this grid.

        Args:
            table: `[..., prefix + patches, dim]`, of the grid it was learned on.

        Returns:
            `[..., prefix, dim]` and `[..., rows * columns, dim]`, in the table's dtype.
        """
        down, across = self.moves
        kept, learned = table[..., : self.grid.prefix, :], table[..., self.grid.prefix :, :]
        lead, dim = learned.shape[:-2], learned.shape[-1]
        rows, columns = self.grid.table
        image = learned.reshape(*lead, rows, columns * dim).to(down.dtype)
        tall = (down @ image).reshape(*lead, -1, columns, dim)
        return kept, (across @ tall).flatten(-3, -2).to(table.dtype)

    def resample(self, table: Tensor) -> Tensor:
        """Return `split` joined: `[..., prefix + rows * columns, dim]`."""
        return torch.cat(self.split(table), dim=-2)


def interpolation(
    size: int, table: int, how: Resampling, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the matrix `[size, table]` that interpolates a line of samples.

    Args:
        size: Samples wanted; may be symbolic.
        table: Samples given.
        how: As `torch.nn.functional.interpolate` does, see `checkpoint.resolution.resample`.
        dtype: Of the matrix.
        device: Of the matrix.
    """
    index = torch.arange(size, dtype=dtype, device=device)
    last = index[-1:]  # a tensor: sizes that are numbers would be symbols in a traced graph
    if how == "bicubic-antialias":
        scale = _ratio(table, last)
        wide = scale.clamp(min=1)
        samples = torch.arange(table, dtype=dtype, device=device) + 0.5
        centres = (index + 0.5) * scale
        weights = _cubic((samples - centres[:, None]) / wide, _SMOOTH)
        return weights / weights.sum(dim=1, keepdim=True)
    if how == "bicubic-corners":
        centres = index * ((table - 1) / last.clamp(min=1))
    else:
        centres = (index + 0.5) * _ratio(table, last) - 0.5
    # Beyond an edge its sample is repeated: what it would weigh counts for the edge.
    samples = torch.arange(-_REACH, table + _REACH, dtype=dtype, device=device)
    edges = torch.eye(table, dtype=dtype, device=device)
    repeated = [edges[:1]] * _REACH + [edges] + [edges[-1:]] * _REACH
    return _cubic(samples - centres[:, None], _SHARP) @ torch.cat(repeated)


def _coordinates(size: int, unit: int, device: torch.device) -> Tensor:
    """Return the centres `[size]` of a line of patches, as `grid_positions` and the unit say."""
    index = torch.arange(size, dtype=torch.float32, device=device)
    last = index[-1:]
    return (index - last / 2) * _ratio(unit, last)


def _ratio(number: int, last: Tensor) -> Tensor:
    """Return `number / (last + 1)`, divided: a number over a tensor is traced as a reciprocal."""
    return torch.full_like(last, number) / (last + 1)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Return the cubic convolution kernel (Keys, 1981), 0 from a distance of 2 on.

    Each of its two polynomials is 0 where the other takes over, so that their sum is both.
    """
    x = distance.abs()
    near, far = x.clamp(max=1), x.clamp(min=1, max=_REACH)
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    return inner + a * (((far - 5) * far + 8) * far - 4)
