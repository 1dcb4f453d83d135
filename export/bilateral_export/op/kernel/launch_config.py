"""Block sizes of the kernel's launches: `launch_config.csv`, one row per case."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from bilateral_export.errors import UserError
from bilateral_export.op.architectures import AMPERE, has_tensor_memory, nearest_compiled
from bilateral_export.op.contract import SpatialKernel

TABLE = Path(__file__).parent / "launch_config.csv"

LARGEST_HEAD = 256
HEAD_DIMS = (16, 32, 64, 128, 256)
FEATURES = (16, 32, 64, 128)
# A dot kernel has two rows: features made of coordinates (`spatial_features.py`) are few, learned
# ones more.
FEATURE_ROWS = (16, 128)
# The tile-ranges kernel states the most there is: left to itself, ptxas spills to fit one more
# program.
TILE_RANGES_REGISTERS = 255
# float32 operands are multiplied as three TF32 products, which keeps 21 bits of each product.
PRECISION = "tf32x3"
# Elements of one program of the features kernel.
FEATURE_BLOCK = 1024

Status = Literal["measured", "predicted"]


@dataclass(frozen=True)
class LaunchConfig:
    """How one launch is cut into programs.

    Attributes:
        block_m: Queries of one program.
        block_n: Keys of one tile.
        num_warps: Warps of one program.
        num_stages: Tiles of keys in flight (software pipelining).
        max_registers: Limit per thread that lets two programs share a multiprocessor; 0 for none.
        status: "measured" if chosen by timing on that architecture; "predicted" if chosen by what
            the compiler reports (registers, spills, shared memory).
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int = 0
    status: Status = "predicted"


@dataclass(frozen=True)
class Case:
    """What a row of the table is for.

    `bits` is the width of T; `features` is the most features of a dot kernel, 0 for the others.
    """

    architecture: int
    bits: int
    spatial_kernel: SpatialKernel
    head_dim: int
    features: int = 0


@cache
def table() -> dict[Case, LaunchConfig]:
    """Return all rows of `launch_config.csv`."""
    with TABLE.open(newline="", encoding="utf-8") as stream:
        lines = [line for line in stream if not line.startswith("#")]
    return {
        Case(
            int(row["architecture"]),
            int(row["bits"]),
            row["spatial_kernel"],  # type: ignore[arg-type]
            int(row["head_dim"]),
            int(row["features"]),
        ): LaunchConfig(
            int(row["block_m"]),
            int(row["block_n"]),
            int(row["num_warps"]),
            int(row["num_stages"]),
            int(row["max_registers"]),
            row["status"],  # type: ignore[arg-type]
        )
        for row in csv.DictReader(lines)
    }


def class_of(size: int, classes: tuple[int, ...], what: str) -> int:
    """Return the smallest class that holds `size`.

    Raises:
        UserError: `size` is larger than every class.
    """
    for candidate in classes:
        if size <= candidate:
            return candidate
    raise UserError(
        f"{what} {size} is larger than {classes[-1]}, the most the fused kernel takes",
        "Use the composite implementation, bilateral_export.op.attention.",
    )


def tile_ranges_warps(capability: int, chosen: LaunchConfig, head_dim: int) -> int:
    """Return the warps of a program of the tile-ranges kernel, which needs registers most.

    Four leave a thread most registers, except where it holds more: long heads, and GPUs with tensor
    memory.
    """
    return 8 if has_tensor_memory(capability) or chosen.block_m * head_dim > 128 * 128 else 4


def choose(
    capability: int, bits: int, spatial_kernel: SpatialKernel, head_dim: int, features: int = 0
) -> LaunchConfig:
    """Return the block sizes for a device and a problem.

    Args:
        capability: Compute capability, such as 90; one not in the table takes the highest below.
        bits: 16 or 32, the width of T.
        spatial_kernel: The spatial kernel.
        head_dim: D, at most `LARGEST_HEAD`.
        features: P of a dot spatial kernel.

    Raises:
        UserError: The device is older than every row, or D or P is too large.
    """
    architecture = nearest_compiled(capability)
    if architecture is None:
        raise UserError(
            f"compute capability {capability / 10:.1f} is older than {AMPERE / 10:.1f}",
            "Use the composite implementation, bilateral_export.op.attention.",
        )
    size = class_of(head_dim, HEAD_DIMS, "head dimension")
    columns = class_of(features, FEATURE_ROWS, "P") if spatial_kernel == "dot" else 0
    return table()[Case(architecture, bits, spatial_kernel, size, columns)]
