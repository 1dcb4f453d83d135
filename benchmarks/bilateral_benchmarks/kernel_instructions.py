"""What a weight costs: instructions in the fused kernel's inner loop, read from its machine code.

`python -m bilateral_benchmarks.kernel_instructions [--sm 90]` needs no GPU. One instruction of a
warp does 32 weights' worth of one operation, so plain attention needs about 5 per weight besides
the matrix products: maximum, multiply-add, exponential, sum, half a conversion, and the rest of the
loop. What the spatial kernels add to that is what they can cost where issuing instructions is the
limit; only a GPU says what they do cost.
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
from bilateral_export.op.contract import SpatialKernel
from bilateral_export.op.kernel.compile import Cubin, Specialisation, compile_one
from bilateral_export.op.kernel.configurations import configuration

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
        prog="python -m bilateral_benchmarks.kernel_instructions", description=__doc__
    )
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--head-dim", type=int, default=64)
    options = parser.parse_args(arguments)
    cases: list[tuple[SpatialKernel, int, int, bool]] = [
        ("none", 0, 0, False),
        ("none", 0, 0, True),
        *(
            ("gaussian", coordinates, 0, term)
            for coordinates in (1, 2, 3)
            for term in (False, True)
        ),
        *(("dot", 0, features, False) for features in (16, 64)),
    ]
    print(
        "| spatial kernel | C | P | key term | block | per weight | FP32 | exp | matrix | loads |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    try:
        for spatial, coordinates, features, key_term in cases:
            chosen = configuration(options.sm, 16, spatial, options.head_dim)
            item = Specialisation(
                "attention", options.sm, "bf16", chosen, options.head_dim, spatial, coordinates,
                features, key_term,
            )  # fmt: skip
            loop = inner_loop(compile_one(item))
            count = collections.Counter(loop.instructions)
            float32 = sum(count[kind] for kind in ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL"))
            matrix = sum(count[kind] for kind in _MATRIX)
            loads = sum(count[kind] for kind in ("LDS", "LDG", "LDGSTS", "LDSM", "LD"))
            print(
                f"| {spatial} | {coordinates or ''} | {features or ''} |"
                f" {'yes' if key_term else ''} | {chosen.block_m}x{chosen.block_n},"
                f" {chosen.num_warps} warps | {loop.per_weight:.1f} | {float32} |"
                f" {count['MUFU']} | {matrix} | {loads} |",
                flush=True,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
