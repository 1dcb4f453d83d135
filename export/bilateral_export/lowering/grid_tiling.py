"""Tilings of a grid of positions: which heads to attend in tiles, and of what shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bilateral_export.lowering.attention_pattern import (
    AttentionPattern,
    PreconditionError,
    Values,
)

# Share of a row's weights that may be left out: what the GPU kernel allows in float32.
TOLERANCE = 2.0**-26
# What u_i - q_i.k_i is expected to be when tiles are chosen; the graph computes what it is.
_EXPECTED = 12.0
# Costs in units of one query-key pair, for one head: copying a key, and one turn of the loop.
_KEY_COST, _TURN_COST = 48, 10_000
# A group of heads is tiled where that is expected to take less than this share of the dense time.
_WORTH = 0.7
# The heads of a group share their windows; none is wider than this times the narrowest.
_ALIKE = 1.5
_SIDES = (8, 12, 16, 24)


@dataclass(frozen=True)
class Grid:
    """Positions as the points of a grid, row by row, behind prefix tokens.

    Attributes:
        prefix: Leading tokens without a position.
        sides: Points along each axis; the first is 1 for a sequence.
        gaps: The smallest distance of neighbours along each axis.
    """

    prefix: int
    sides: tuple[int, int]
    gaps: tuple[float, float]

    @property
    def points(self) -> int:
        """How many."""
        return self.sides[0] * self.sides[1]


@dataclass(frozen=True)
class Tiling:
    """A cut of a grid into tiles of one shape; the last of a row may overlap its neighbour.

    Attributes:
        grid: What is cut.
        shape: Rows and columns of a tile.
        block: Rows and columns of a block; they divide those of a tile.
    """

    grid: Grid
    shape: tuple[int, int]
    block: tuple[int, int]

    @property
    def area(self) -> int:
        """Queries of a tile."""
        return self.shape[0] * self.shape[1]

    @property
    def block_area(self) -> int:
        """Queries of a block."""
        return self.block[0] * self.block[1]

    def corners(self) -> NDArray[np.int64]:
        """Return the first row and column of every tile, `[tiles, 2]`."""
        axes = [
            np.minimum(np.arange(0, side, step), side - step)
            for side, step in zip(self.grid.sides, self.shape, strict=True)
        ]
        first = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
        return np.asarray(first, dtype=np.int64)

    def queries(self) -> NDArray[np.int64]:
        """Return the tokens of every tile, block by block, `[tiles, area]`."""
        inside = np.argwhere(np.ones(self.shape))
        block = inside // self.block
        inside = inside[np.lexsort((block[:, 1], block[:, 0]))]
        placed = self.corners()[:, None] + inside
        return np.asarray(self.grid.prefix + placed[..., 0] * self.grid.sides[1] + placed[..., 1])

    def cost(self, radius: int) -> float:
        """Return the expected cost of a query, in pairs, if all windows have this radius."""
        low = np.maximum(self.corners() - radius, 0)
        high = np.minimum(self.corners() + np.array(self.shape) + radius, self.grid.sides)
        window = float((high - low).prod(axis=1).sum()) / len(low)
        tile = (window + self.grid.prefix) * (self.area + _KEY_COST) + _TURN_COST
        return tile * len(low) / self.grid.points

    def largest_window(self) -> int:
        """Return the mean window from which on the dense form is expected to be faster."""
        dense = (self.grid.points + self.grid.prefix) * self.grid.points / len(self.corners())
        return int((dense - _TURN_COST) / (self.area + _KEY_COST)) - self.grid.prefix


@dataclass(frozen=True)
class HeadGroup:
    """Heads that are computed together: in tiles, or dense where `tiling` is None."""

    heads: tuple[int, ...]
    tiling: Tiling | None


def worth_tiling(pattern: AttentionPattern) -> bool:
    """Return whether tiles are expected to be faster for some heads of an attention."""
    try:
        return any(group.tiling for group in head_groups(pattern))
    except PreconditionError:
        return False


def head_groups(pattern: AttentionPattern) -> list[HeadGroup]:
    """Return the heads of an attention by how they are computed fastest, narrow ones first.

    Raises:
        PreconditionError: See `rewrite_to_tiles`.
    """
    grid = _grid(pattern)
    assert pattern.bandwidth is not None
    narrow: list[list[int]] = []
    wide: list[int] = []
    for head in np.argsort(pattern.bandwidth, kind="stable").tolist():
        sigma = pattern.bandwidth[head]
        if _tiling(grid, sigma) is None:
            wide.append(head)
        elif narrow and sigma <= _ALIKE * pattern.bandwidth[narrow[-1][0]]:
            narrow[-1].append(head)
        else:
            narrow.append([head])
    groups = [
        HeadGroup(tuple(sorted(heads)), _tiling(grid, pattern.bandwidth[heads[-1]]))
        for heads in narrow
    ]
    return [*groups, HeadGroup(tuple(sorted(wide)), None)] if wide else groups


def log_tail(grid: Grid, sigma: float) -> Values:
    """Return ln T(r) for r = 0, 1, ...: an upper bound of the Gaussian's sum beyond a radius.

    The sum over a grid of a product is a product of sums over its axes: what is beyond r along one
    axis, times everything along the other. At the last radius nothing is beyond: -inf.
    """
    longest = max(grid.sides)
    ends, whole = [], []
    for side, gap in zip(grid.sides, grid.gaps, strict=True):
        logits = np.full(longest + 1, -np.inf)
        logits[:side] = -0.5 * np.square(np.arange(side) * gap / sigma)
        beyond = np.logaddexp.accumulate(logits[::-1])[::-1][1:] + np.log(2)  # on either hand
        ends.append(beyond)
        whole.append(np.logaddexp(0.0, beyond[0]))
    return np.asarray(np.logaddexp(ends[0] + whole[1], ends[1] + whole[0]))


def _grid(pattern: AttentionPattern) -> Grid:
    """Read the positions as a grid."""
    if pattern.spatial_kernel != "gaussian":
        raise PreconditionError("its spatial kernel is not a Gaussian")
    if pattern.positions is None:
        raise PreconditionError("the positions are not constant")
    if pattern.range_kernel == "gaussian" and pattern.scale <= 0:
        raise PreconditionError(f"its scale is {pattern.scale:g}: it grows with distance")
    queries, keys = pattern.positions
    prefix = pattern.key_prefix
    if pattern.query_prefix != prefix or not np.array_equal(queries, keys):
        raise PreconditionError("queries and keys have other positions")
    placed = keys[prefix:]
    if placed.shape[1] == 1:
        placed = np.concatenate([np.zeros_like(placed), placed], axis=1)
    if placed.shape[1] != 2 or len(placed) < 2:
        raise PreconditionError("its positions are not a grid")
    slow, fast = (0, 1) if placed[0, 0] == placed[1, 0] else (1, 0)
    width = int((np.cumsum(placed[:, slow] != placed[0, slow]) == 0).sum())
    if len(placed) % width:
        raise PreconditionError("its positions are not a grid")
    rows, columns = placed[::width, slow], placed[:width, fast]
    if not np.array_equal(placed[:, slow], np.repeat(rows, width)) or not np.array_equal(
        placed[:, fast], np.tile(columns, len(rows))
    ):
        raise PreconditionError("its positions are not a grid")
    gaps = [float(np.diff(axis).min()) if len(axis) > 1 else 1.0 for axis in (rows, columns)]
    if min(gaps) <= 0:
        raise PreconditionError("its positions are not a grid")
    return Grid(prefix, (len(rows), width), (gaps[0], gaps[1]))


def _tiling(grid: Grid, sigma: float) -> Tiling | None:
    """Return the tiles that are expected to be fastest, or None where dense attention is."""
    radius = int((log_tail(grid, sigma) > np.log(TOLERANCE) - _EXPECTED).sum())
    choices = []
    for side in _SIDES:
        rows = min(side, grid.sides[0])
        shape = (rows, side**2 // rows)
        if shape[1] <= grid.sides[1]:
            first, second = (
                _block_side(length, gap / sigma)
                for length, gap in zip(shape, grid.gaps, strict=True)
            )
            choices.append(Tiling(grid, shape, (first, second)))
    best = min(choices, key=lambda tiling: tiling.cost(radius), default=None)
    dense = grid.points + grid.prefix
    return best if best and best.cost(radius) < _WORTH * dense else None


def _block_side(length: int, gap: float) -> int:
    """Return the divisor b of a tile's side with the largest ln b minus the mean of gap^2 d^2 / 2.

    d is the distance from a block's corner, and the gap is in bandwidths.
    """
    sides = np.array([side for side in range(1, length + 1) if length % side == 0])
    mean_square = (sides - 1) * (2 * sides - 1) / 6
    return int(sides[np.argmax(np.log(sides) - 0.5 * gap**2 * mean_square)])
