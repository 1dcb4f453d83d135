"""Compiles the kernels that the plugin embeds.

    python compile_kernels.py CUBINS_DIR [--set standard|full] [--sm ...] [--dtype ...]

`full` is every kernel of `bilateral kernels compile`. `standard` is what `make plugin`
builds in minutes on two cores: heads up to 128, one or two coordinates, up to 64 position
features (in 16 bits also up to 16 alone), fp32 with heads up to 64 alone, and the skipping of far
tiles for images (two coordinates, heads up to 64). What a plan needs and the library lacks is said
when the plan is built.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_export.op.architectures import ARCHITECTURES, compiled_for
from bilateral_export.op.kernel.aot.compile import compile_all
from bilateral_export.op.kernel.aot.manifest import problems
from bilateral_export.op.kernel.aot.specialisation import DTYPES, Specialisation, specialisations


def main() -> int:
    """Parse, compile, report; 0 when the cubins are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="directory to create")
    parser.add_argument("--set", choices=("standard", "full"), default="standard")
    parser.add_argument(
        "--sm",
        type=int,
        nargs="+",
        choices=list(ARCHITECTURES),
        default=list(ARCHITECTURES),
        help="compute capabilities",
    )
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--head-dim", type=int, nargs="+", help="only these head sizes")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    options = parser.parse_args()

    wanted = [
        kernel
        for kernel in specialisations(compiled_for(options.sm))
        if kernel.dtype in options.dtype
        and (options.set == "full" or is_standard(kernel))
        and (not options.head_dim or kernel.head_dim in (0, *options.head_dim))
    ]
    try:
        manifest = compile_all(options.folder, wanted, options.workers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems(manifest):
        print(f"note: {problem}")
    print(f"{len(manifest['cubins'])} kernels, {manifest['total_bytes'] / 1e6:.1f} MB")
    return 0


def positive(text: str) -> int:
    """Return a number of 1 or more, as the type of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def is_standard(kernel: Specialisation) -> bool:
    """Whether a kernel is in the standard set."""
    if kernel.kernel == "plan":  # without it no tile is skipped, and the result is the same
        return kernel.coordinates == 2 and kernel.head_dim <= 64
    largest_head = 64 if kernel.dtype == "fp32" else 128
    # 16: what a Gaussian spatial kernel becomes as features, which float32 has no use for.
    features = (0, 64) if kernel.dtype == "fp32" else (0, 16, 64)
    return (
        kernel.head_dim <= largest_head and kernel.coordinates <= 2 and kernel.features in features
    )


if __name__ == "__main__":
    raise SystemExit(main())
