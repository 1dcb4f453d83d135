"""What a weight costs: instructions in the fused kernel's inner loop, read from its machine code.

`python -m bilateral_benchmarks.kernel.instructions [--sm 90]` needs no GPU. One instruction of a
warp does 32 weights' worth of one operation, so plain attention needs about 5 per weight besides
the matrix products: maximum, multiply-add, exponential, sum, half a conversion, and the rest of the
loop.

From the counts follow three lower bounds of a multiprocessor's time for a tile: issuing the
instructions (4 schedulers of 32 lanes), the exponentials (16 a cycle) and the matrix products (2048
multiply-adds of 16 bits a cycle on 9.0; CUDA C++ Programming Guide, "Arithmetic Instructions", and
NVIDIA's H100 white paper). The largest is the prediction, and its ratio to that of plain attention
what a spatial kernel is predicted to cost. Only a GPU says what it does cost.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_export.op.architectures import COMPILED
from bilateral_export.op.contract import SpatialKernel
from bilateral_export.op.kernel.aot.cubin import Cubin, compile_one
from bilateral_export.op.kernel.aot.specialisation import Specialisation
from bilateral_export.op.kernel.launch_config import (
    HEAD_DIMS,
    LaunchConfig,
    choose,
)

# Of one multiprocessor of 9.0, each cycle.
LANES, EXPONENTIALS, PRODUCTS = 128, 16, 2048
_MATRIX = ("HGMMA", "HMMA", "UTCHMMA")
_LABEL = re.compile(r"^\.L_x_\w+:")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)")


@dataclass(frozen=True)
class Loop:
    """The inner loop of one cubin: how many instructions of each kind a warp issues per tile."""

    cubin: Cubin
    instructions: Mapping[str, int]

    @property
    def per_weight(self) -> float:
        """Instructions of one thread for each weight it computes."""
        chosen = self.cubin.specialisation.configuration
        weights_per_thread = chosen.block_m * chosen.block_n / (32 * chosen.num_warps)
        return sum(self.instructions.values()) / weights_per_thread

    @property
    def cycles(self) -> Mapping[str, float]:
        """Lower bounds of a multiprocessor's cycles for 1000 weights, by what bounds them."""
        item = self.cubin.specialisation
        features = item.features if item.spatial == "dot" else 0
        return {
            "issue": 1e3 * self.per_weight / LANES,
            "exp": 1e3 / EXPONENTIALS,
            "matrix": 1e3 * (2 * item.head_dim + features) / PRODUCTS,
        }


def inner_loop(cubin: Cubin) -> Loop:
    """Disassemble a cubin; the inner loop is the last block of code with a matrix product."""
    import triton

    tool = Path(triton.knobs.nvidia.cuobjdump.path).with_name("nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin.code)
        listing = subprocess.run(
            [tool, "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    blocks: list[collections.Counter[str]] = [collections.Counter()]
    for line in listing.splitlines():
        if _LABEL.match(line):
            blocks.append(collections.Counter())
        elif found := _INSTRUCTION.match(line):
            blocks[-1][found.group(1)] += 1
    return Loop(cubin, [block for block in blocks if any(kind in block for kind in _MATRIX)][-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row per kernel."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.kernel.instructions", description=__doc__
    )
    parser.add_argument("--sm", type=int, default=90, choices=list(COMPILED))
    parser.add_argument("--head-dim", type=int, default=64, choices=HEAD_DIMS)
    parser.add_argument("--block", nargs=4, type=int, metavar=("M", "N", "WARPS", "STAGES"))
    options = parser.parse_args(arguments)
    cases: list[tuple[SpatialKernel, int, int, bool]] = [
        ("none", 0, 0, False),
        ("none", 0, 0, True),
        *(
            ("gaussian", coordinates, 0, term)
            for coordinates in (1, 2, 3)
            for term in (False, True)
        ),
        *(("dot", 0, features, term) for features in (16, 64) for term in (False, True)),
    ]
    print(
        "| spatial kernel | C | P | key term | block | registers | per weight | FP32 | exp | matrix"
        " | loads | cycles: issue, exp, matrix | to plain |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    plain = 0.0
    try:
        for spatial, coordinates, features, key_term in cases:
            chosen = choose(options.sm, 16, spatial, options.head_dim, features)
            if options.block:
                chosen = LaunchConfig(*options.block)
            item = Specialisation(
                "attention", options.sm, "bf16", chosen, options.head_dim, spatial, coordinates,
                features, key_term,
            )  # fmt: skip
            loop = inner_loop(_compiled(item))
            plain = plain or max(loop.cycles.values())
            print(row(loop, plain), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _compiled(item: Specialisation) -> Cubin:
    try:
        return compile_one(item)
    except UserError:
        raise
    except Exception as error:  # Triton has no common base of its compilation errors.
        chosen = item.configuration
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{item.name} does not compile in blocks of {chosen.block_m} x {chosen.block_n},"
            f" {chosen.num_warps} warps, {chosen.num_stages} stages: {reason[-1]}",
            "Blocks and warps are powers of 2.",
        ) from error


def row(loop: Loop, plain: float) -> str:
    """One row of the table; `plain` is the bound of plain attention, cycles for 1000 weights."""
    item, count = loop.cubin.specialisation, collections.Counter(loop.instructions)
    chosen = item.configuration
    float32 = sum(count[kind] for kind in ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL"))
    matrix = sum(count[kind] for kind in _MATRIX)
    loads = sum(count[kind] for kind in ("LDS", "LDG", "LDGSTS", "LDSM", "LD"))
    spilled = f", {loop.cubin.spill_bytes} B spilled" if loop.cubin.spill_bytes else ""
    cells = (
        item.spatial, item.coordinates or "", item.features or "", "yes" if item.key_term else "",
        f"{chosen.block_m}x{chosen.block_n}, {chosen.num_warps} warps",
        f"{loop.cubin.registers}{spilled}", f"{loop.per_weight:.1f}", float32, count["MUFU"],
        matrix, loads, ", ".join(f"{cycles:.0f}" for cycles in loop.cycles.values()),
        f"{max(loop.cycles.values()) / plain:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    raise SystemExit(main())
