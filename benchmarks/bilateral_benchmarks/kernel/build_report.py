"""Report of an ahead-of-time build.

    python -m bilateral_benchmarks.kernel.build_report DIR... --output DIR

Takes what `python -m bilateral_export.op.kernel.aot.compile DIR` wrote and sums it up: registers,
spills, shared memory and size per architecture and kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bilateral_benchmarks.report.context import Context
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, to_json, write_text
from bilateral_export.op.kernel.aot.manifest import problems

COMMAND = "python -m bilateral_benchmarks.kernel.build_report DIR --output benchmarks/results"
_FACTS = (
    "file",
    "architecture",
    "kernel",
    "dtype",
    "head_dim",
    "spatial",
    "coordinates",
    "features",
    "key_term",
    "block_m",
    "block_n",
    "num_warps",
    "num_stages",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "serialised",
    "matrix_instructions",
    "bytes",
)


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a build.

    Raises:
        UserError: There is none, or it is something else.
    """
    path = require_file(directory / "manifest.json", "manifest")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = all(cubin.keys() >= set(_FACTS) for cubin in manifest["cubins"])
        complete = complete and manifest.keys() >= {"triton", "ptxas"}
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UserError(
            f"{path} is not the manifest of such a build",
            "Give a directory that `python -m bilateral_export.op.kernel.aot.compile` wrote.",
        )
    return manifest


def markdown(cubins: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One table over architectures, one over the attention kernels for bf16."""
    yield "| architecture | cubins | MB | spilled bytes | wgmma serialised | matrix instructions |"
    yield "|---|---|---|---|---|---|"
    for architecture in sorted({cubin["architecture"] for cubin in cubins}):
        own = [cubin for cubin in cubins if cubin["architecture"] == architecture]
        attention = [cubin for cubin in own if cubin["kernel"] == "attention"]
        kinds = sorted({kind for cubin in attention for kind in cubin["matrix_instructions"]})
        yield (
            f"| {architecture / 10:.1f} | {len(own)} | {sum(c['bytes'] for c in own) / 1e6:.1f} |"
            f" {sum(c['spill_bytes'] for c in own)} | {sum(c['serialised'] for c in attention)} |"
            f" {', '.join(kinds)} |"
        )
    yield ""
    yield "| architecture | D | spatial | key term | block, warps, stages | registers | KiB |"
    yield "|---|---|---|---|---|---|---|"
    for cubin in cubins:
        if cubin["kernel"] == "attention" and cubin["dtype"] == "bf16":
            yield (
                f"| {cubin['architecture'] / 10:.1f} | {cubin['head_dim']} |"
                f" {cubin['spatial']}{cubin['coordinates'] or cubin['features'] or ''} |"
                f" {'yes' if cubin['key_term'] else 'no'} |"
                f" {cubin['block_m']}x{cubin['block_n']}, {cubin['num_warps']},"
                f" {cubin['num_stages']} | {cubin['registers']} |"
                f" {cubin['shared_bytes'] / 1024:.0f} |"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write kernel_build.json and kernel_build.md; exit code 1 if a build has a problem."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.kernel.build_report", description=__doc__
    )
    parser.add_argument("builds", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        manifests = [read(directory) for directory in options.builds]
        # A cubin in two builds is taken from the later one.
        cubins = list({c["file"]: c for manifest in manifests for c in manifest["cubins"]}.values())
        found = problems({"cubins": cubins})
        facts = {
            # The folders are of no interest to a reader.
            "context": Context.now().model_copy(update={"command": COMMAND}).model_dump(),
            "triton": sorted({manifest["triton"] for manifest in manifests}),
            "ptxas": sorted({manifest["ptxas"] for manifest in manifests}),
            "total_bytes": sum(cubin["bytes"] for cubin in cubins),
            "problems": found,
            "cubins": [{name: cubin[name] for name in _FACTS} for cubin in cubins],
        }
        lines = [
            "# Ahead-of-time build of the fused kernel",
            "",
            f"`python -m bilateral_export.op.kernel.aot.compile DIR`, then `{COMMAND}`."
            f" Triton {', '.join(facts['triton'])}, ptxas {', '.join(facts['ptxas'])}."
            " No GPU: block sizes are predicted, nothing here is a time.",
            "",
            f"{len(cubins)} cubins, {facts['total_bytes'] / 1e6:.1f} MB, {len(found)} problems.",
            *found,
            "",
            *markdown(cubins),
        ]
        write_text(options.output / "kernel_build.json", to_json(facts))
        write_text(options.output / "kernel_build.md", "\n".join(lines) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
