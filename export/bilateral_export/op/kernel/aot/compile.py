"""The ahead-of-time build: `python -m bilateral_export.op.kernel.aot.compile OUTDIR`.

Needs the package `triton` and no GPU. Writes one cubin per specialisation and `manifest.json`, from
which a launcher that knows nothing of Triton can run them (README.md, "Launch ABI").
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilateral_export.errors import UserError
from bilateral_export.files import atomic_directory, write_text
from bilateral_export.op.architectures import ARCHITECTURES, COMPILED
from bilateral_export.op.kernel.aot.cubin import compile_one
from bilateral_export.op.kernel.aot.manifest import (
    cubin_entry,
    manifest,
    problems,
    summary,
)
from bilateral_export.op.kernel.aot.specialisation import DTYPES, Specialisation, select
from bilateral_export.op.kernel.aot.workers import positive, worker_pool


def compile_all(target: Path, wanted: Sequence[Specialisation], workers: int) -> dict[str, Any]:
    """Compile into `target`, a directory that must not exist, and return the manifest."""
    with atomic_directory(target) as directory:
        with worker_pool(workers) as pool:
            cubins = []
            for number, cubin in enumerate(pool.map(compile_one, wanted), 1):
                (directory / f"{cubin.specialisation.name}.cubin").write_bytes(cubin.code)
                # The image is on the disk now; only its facts are kept.
                cubins.append((cubin_entry(cubin), cubin.arguments))
                print(f"{number}/{len(wanted)} {summary(cubin)}", file=sys.stderr, flush=True)
        result = manifest(cubins)
        write_text(directory / "manifest.json", json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the full set, or that of some architectures and types."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_export.op.kernel.aot.compile", description=__doc__
    )
    parser.add_argument("outdir", type=Path, help="directory to create")
    parser.add_argument(
        "--sm", type=int, nargs="+", default=list(COMPILED), choices=list(ARCHITECTURES)
    )
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument(
        "--only", default="", help="regular expression that the names of cubins have to contain"
    )
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    try:
        wanted = select(options.sm, options.dtype, options.only)
        result = compile_all(options.outdir, wanted, options.workers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = problems(result)
    print(f"{len(result['cubins'])} cubins, {result['total_bytes'] / 1e6:.1f} MB")
    for problem in found:
        print(f"problem: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
