"""Ahead-of-time compilation of the kernels (`bilateral kernels compile OUTDIR`).

Needs the package `triton` and no GPU. Writes one cubin per specialisation and `manifest.json`, from
which a launcher that knows nothing of Triton can run them (README.md, "Launch ABI").
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilateral_export.files import atomic_directory, write_text
from bilateral_export.op.kernel.aot.cubin import compile_one
from bilateral_export.op.kernel.aot.manifest import cubin_entry, manifest, summary
from bilateral_export.op.kernel.aot.specialisation import Specialisation
from bilateral_export.op.kernel.aot.workers import worker_pool


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
