"""How many key tiles the plan leaves out, against the bandwidth. Needs no GPU.

`TRITON_INTERPRET=1 python -m bilateral_benchmarks.studies.tile_skipping_random` runs the
tile_ranges kernel in Triton's interpreter, with the block sizes of one architecture, on random
tokens. What it prints is exact: the plan computes the same on a GPU. Time is not: 1 / share is
what the main kernel could
gain at most.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from bilateral_benchmarks.kernel.baselines import Problem, Shape, problem
from bilateral_export.errors import UserError
from bilateral_export.op.architectures import COMPILED
from bilateral_export.op.contract import RANGE_KERNELS
from bilateral_export.op.kernel import launch_config
from bilateral_export.op.kernel.aot.workers import positive

BANDWIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, math.inf)


def tiles_read(case: Problem, capability: int) -> float:
    """The share of key tiles that the main kernel is told to read."""
    from bilateral_export.op.kernel.launch import prepare

    shape = case.shape
    chosen = launch_config.choose(capability, 16, "gaussian", shape.head_dim)
    launch = prepare(case.operands, True, chosen)
    low, high = launch.tile_ranges(*launch.key_terms()).unbind(-1)
    visible = 0.5 if shape.causal else 1.0
    return float((high - low).clamp(min=0).float().mean()) / launch.key_tiles / visible


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the share of tiles read for tokens in a square and on a line."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.studies.tile_skipping_random", description=__doc__
    )
    parser.add_argument("--tokens", type=positive, default=4096)
    parser.add_argument(
        "--sm", type=int, default=90, choices=list(COMPILED),
        help="whose block sizes to use",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        from bilateral_export.op.kernel.launch import INTERPRETED
    except ImportError:
        print("error: triton is not installed", file=sys.stderr)
        return 2
    if not INTERPRETED and not torch.cuda.is_available():
        error = UserError("there is no GPU to run the plan on", "Set TRITON_INTERPRET=1.")
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"| positions | range | {' | '.join(f'sigma {b:g}' for b in BANDWIDTHS)} |")
    print(f"|---|---|{'---|' * len(BANDWIDTHS)}")
    square = Shape("skipping", 1, 1, options.tokens, 64)
    for name, causal in (("square", False), ("line, causal", True)):
        for range_kernel in RANGE_KERNELS:
            shares = [
                tiles_read(
                    problem(
                        replace(
                            square, causal=causal, range_kernel=range_kernel, bandwidth=bandwidth
                        ),
                        device,
                    ),
                    options.sm,
                )
                for bandwidth in BANDWIDTHS
            ]
            print(f"| {name} | {range_kernel} | {' | '.join(f'{s:.0%}' for s in shares)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
