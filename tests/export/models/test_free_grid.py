"""The grid that only an image fixes: PyTorch's interpolation, and the coordinates of any size."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bilateral_export.models.attention import grid_positions
from bilateral_export.models.free_grid import FreeGrid, Resampling

TABLES = ((4, 4), (14, 14), (5, 9), (1, 3))
GRIDS = ((4, 4), (14, 14), (7, 9), (3, 2), (1, 1), (32, 24), (20, 41))


@pytest.mark.parametrize("how", get_args(Resampling))
def test_a_learned_table_is_interpolated_as_pytorch_does(how: Resampling) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in TABLES:
        table = torch.randn(3, 2 + rows * columns, 5, generator=generator, dtype=torch.float64)
        image = table[:, 2:].reshape(3, rows, columns, 5).permute(0, 3, 1, 2)
        for size in GRIDS:
            grid = FreeGrid(2, (rows, columns), (rows, columns), how).at(*size, table)
            wanted = F.interpolate(
                image,
                size=size,
                mode="bicubic",
                align_corners=how == "bicubic-corners",
                antialias=how == "bicubic-antialias",
            )
            kept, moved = grid.split(table)
            torch.testing.assert_close(kept, table[:, :2], rtol=0, atol=0)
            torch.testing.assert_close(moved, wanted.flatten(2).mT, rtol=0, atol=1e-12)
            if size == (rows, columns):
                torch.testing.assert_close(grid.resample(table), table, rtol=0, atol=0)


def test_coordinates_are_those_of_a_model_built_at_that_size_to_the_last_bit() -> None:
    for unit in TABLES:
        for size in GRIDS:
            fixed = grid_positions(*size, prefix=1)
            fixed *= torch.tensor([unit[0] / size[0], unit[1] / size[1]])
            grid = FreeGrid(1, unit, unit, "bicubic").at(*size, torch.zeros(1))
            np.testing.assert_array_equal(grid.positions.numpy(), fixed.numpy())
