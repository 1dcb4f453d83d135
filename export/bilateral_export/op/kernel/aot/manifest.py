"""`manifest.json`: the facts about each cubin that a launcher without Triton needs, and a check."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bilateral_export.op.architectures import ARCHITECTURES, runs_on
from bilateral_export.op.kernel.aot.cubin import Cubin, load_triton

# Of the launch: README.md, "Launch ABI".
ABI = 1


def manifest(
    cubins: Sequence[tuple[dict[str, Any], tuple[tuple[str, str], ...]]],
) -> dict[str, Any]:
    """Return the JSON beside the cubins; README.md explains its fields."""
    return {
        "abi": ABI,
        "triton": load_triton().__version__,
        "ptxas": load_triton().knobs.nvidia.ptxas.version,
        "total_bytes": sum(entry["bytes"] for entry, _ in cubins),
        "arguments": {entry["kernel"]: arguments for entry, arguments in cubins},
        "cubins": [entry for entry, _ in cubins],
    }


def cubin_entry(cubin: Cubin) -> dict[str, Any]:
    """Return the manifest's entry for one cubin."""
    specialisation = asdict(cubin.specialisation)
    chosen = specialisation.pop("configuration")
    return {
        "file": f"{cubin.specialisation.name}.cubin",
        "symbol": cubin.symbol,
        "runs_on": runs_on(cubin.specialisation.architecture),
        **specialisation,
        "block_m": chosen["block_m"],
        "block_n": chosen["block_n"],
        "num_warps": chosen["num_warps"],
        "num_stages": chosen["num_stages"],
        "status": chosen["status"],
        "threads": 32 * chosen["num_warps"],
        "shared_bytes": cubin.shared_bytes,
        "registers": cubin.registers,
        "spill_bytes": cubin.spill_bytes,
        "serialised": cubin.serialised,
        "matrix_instructions": cubin.matrix_instructions,
        "bytes": len(cubin.code),
        "sha256": hashlib.sha256(cubin.code).hexdigest(),
    }


def summary(cubin: Cubin) -> str:
    """Return one line about a cubin."""
    return (
        f"{cubin.specialisation.name}: {cubin.registers} registers,"
        f" {cubin.spill_bytes} bytes spilled, {cubin.shared_bytes} bytes shared,"
        f" {len(cubin.code)} bytes{', SERIALISED' if cubin.serialised else ''}"
    )


def problems(result: dict[str, Any]) -> list[str]:
    """List what is wrong with a manifest's cubins: spills, excess shared memory, slow wgmma."""
    found = []
    for entry in result["cubins"]:
        limit = min(ARCHITECTURES[device].shared_bytes for device in entry["runs_on"])
        if entry["spill_bytes"]:
            found.append(f"{entry['file']} spills {entry['spill_bytes']} bytes")
        if entry["shared_bytes"] > limit:
            found.append(f"{entry['file']} needs {entry['shared_bytes']} bytes shared, has {limit}")
        if entry["kernel"] == "attention" and entry["serialised"]:
            found.append(f"{entry['file']} has its wgmma instructions serialised")
    return found
