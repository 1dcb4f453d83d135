"""Compile the kernels ahead of time: `python -m bilateral_export.op.kernel.compile OUTDIR`.

Needs the package `triton` and no GPU. Writes one cubin per specialisation and `manifest.json`, from
which a launcher that knows nothing of Triton can run them (README.md, "Launch ABI").
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from bilateral_export.errors import UserError
from bilateral_export.files import atomic_directory, write_text
from bilateral_export.op.contract import MAX_COORDINATES, SpatialKernel
from bilateral_export.op.kernel import configurations
from bilateral_export.op.kernel.configurations import ARCHITECTURES, Configuration

ABI = 1
Kernel = Literal["attention", "key_tiles", "plan", "features"]
DTYPES = {"fp32": 32, "fp16": 16, "bf16": 16}
# Smaller heads and features are padded to the next of these: fewer cubins.
HEAD_DIMS = {16: (32, 64, 128, 256), 32: (64, 128)}
FEATURES = (16, 64, 128)
FEATURE_BLOCK = 1024
# Dynamic shared memory one program may have, bytes (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability").
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}

# Pointers whose type is not T.
_FLOAT = ("bandwidth", "key_term", "key_bias", "tile_norm", "tile_term", "tile_boxes", "source")
_INT = ("tile_ranges",)
_SCRATCH = ("global_scratch", "profile_scratch")


@dataclass(frozen=True)
class Specialisation:
    """What one cubin is compiled for; the fields are those of the manifest."""

    kernel: Kernel
    architecture: int
    dtype: str
    configuration: Configuration
    head_dim: int = 0
    spatial: SpatialKernel = "none"
    coordinates: int = 0
    features: int = 0
    key_term: bool = False

    @property
    def name(self) -> str:
        """File name without ending: every field that tells it from the others."""
        parts = [self.kernel, f"sm{self.architecture}", self.dtype]
        parts += [f"d{self.head_dim}"] * bool(self.head_dim)
        if self.kernel == "attention":
            parts.append(f"{self.spatial}{self.coordinates or self.features or ''}")
            parts += ["term"] * self.key_term
        if self.kernel == "plan":
            parts.append(f"c{self.coordinates}")
        if self.kernel in ("key_tiles", "plan"):
            parts.append(f"m{self.configuration.block_m}n{self.configuration.block_n}")
        return "_".join(parts)


@dataclass(frozen=True)
class Cubin:
    """A compiled specialisation, and what the compiler says about it.

    Attributes:
        code: The ELF image.
        symbol: The kernel's name in it.
        shared_bytes: Dynamic shared memory of a launch.
        registers: Per thread.
        spill_bytes: Stores and loads of registers that did not fit, per thread.
        serialised: Whether ptxas gave up overlapping the matrix instructions (sm_90 only).
        matrix_instructions: Kinds found in the PTX: "mma", "wgmma", "tcgen05".
        arguments: Name and type of every argument, in order.
    """

    specialisation: Specialisation
    code: bytes
    symbol: str
    shared_bytes: int
    registers: int
    spill_bytes: int
    serialised: bool
    matrix_instructions: tuple[str, ...]
    arguments: tuple[tuple[str, str], ...]


def specialisations(
    architectures: Sequence[int] = tuple(ARCHITECTURES),
) -> Iterator[Specialisation]:
    """The full set for these architectures (keys of `ARCHITECTURES`)."""
    for architecture in architectures:
        for dtype, bits in DTYPES.items():
            helper = Configuration(0, 0, 4, 1)
            yield Specialisation("features", architecture, dtype, helper)
            for head_dim in HEAD_DIMS[bits]:
                yield from _attention(architecture, dtype, head_dim)


def _attention(architecture: int, dtype: str, head_dim: int) -> Iterator[Specialisation]:
    def make(kernel: Kernel, spatial: SpatialKernel, **fields: Any) -> Specialisation:
        chosen = configurations.configuration(architecture, DTYPES[dtype], spatial, head_dim)
        if kernel == "plan":
            warps = configurations.plan_warps(architecture, chosen, head_dim)
            chosen = replace(chosen, num_warps=warps, num_stages=1)
        return Specialisation(
            kernel, architecture, dtype, chosen, head_dim=head_dim, spatial=spatial, **fields
        )

    for key_term in (False, True):
        yield make("attention", "none", key_term=key_term)
    yield make("key_tiles", "gaussian")
    for coordinates in range(1, MAX_COORDINATES + 1):
        yield make("attention", "gaussian", coordinates=coordinates, key_term=True)
        if DTYPES[dtype] == 16:
            yield make("plan", "gaussian", coordinates=coordinates, key_term=True)
    if head_dim <= 128:
        for features in FEATURES:
            yield make("attention", "dot", features=features, key_term=True)


def compile_one(specialisation: Specialisation) -> Cubin:
    """Compile one specialisation. Nothing is cached, so that ptxas reports every time.

    Raises:
        UserError: triton is missing, or runs as an interpreter.
    """
    triton = _triton()
    function, constants, options = kernel_of(specialisation)
    source = triton.compiler.ASTSource(
        fn=function,
        signature=_signature(specialisation, function, constants),
        constexprs=constants,
        attrs=_divisible_pointers(specialisation, function, constants),
    )
    target = triton.backends.compiler.GPUTarget("cuda", specialisation.architecture, 32)
    log = io.StringIO()
    with _compiler_settings(triton), contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=target, options=options)
    return _read(specialisation, function, constants, compiled, log.getvalue())


def compile_all(target: Path, wanted: Sequence[Specialisation], workers: int) -> dict[str, Any]:
    """Compile into `target`, a directory that must not exist, and return the manifest."""
    with atomic_directory(target) as directory:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            cubins = []
            for number, cubin in enumerate(pool.map(compile_one, wanted), 1):
                (directory / f"{cubin.specialisation.name}.cubin").write_bytes(cubin.code)
                # The image is on the disk now; only its facts are kept.
                cubins.append((cubin_entry(cubin), cubin.arguments))
                print(f"{number}/{len(wanted)} {summary(cubin)}", file=sys.stderr, flush=True)
        result = manifest(cubins)
        write_text(directory / "manifest.json", json.dumps(result, indent=1) + "\n")
    return result


def manifest(
    cubins: Sequence[tuple[dict[str, Any], tuple[tuple[str, str], ...]]],
) -> dict[str, Any]:
    """The JSON beside the cubins; README.md explains its fields."""
    return {
        "abi": ABI,
        "triton": _triton().__version__,
        "ptxas": _triton().knobs.nvidia.ptxas.version,
        "total_bytes": sum(entry["bytes"] for entry, _ in cubins),
        "arguments": {entry["kernel"]: arguments for entry, arguments in cubins},
        "cubins": [entry for entry, _ in cubins],
    }


def cubin_entry(cubin: Cubin) -> dict[str, Any]:
    """One cubin in the manifest."""
    specialisation = asdict(cubin.specialisation)
    chosen = specialisation.pop("configuration")
    return {
        "file": f"{cubin.specialisation.name}.cubin",
        "symbol": cubin.symbol,
        "runs_on": ARCHITECTURES.get(
            cubin.specialisation.architecture, (cubin.specialisation.architecture,)
        ),
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
    """One line about a cubin."""
    return (
        f"{cubin.specialisation.name}: {cubin.registers} registers,"
        f" {cubin.spill_bytes} bytes spilled, {cubin.shared_bytes} bytes shared,"
        f" {len(cubin.code)} bytes{', SERIALISED' if cubin.serialised else ''}"
    )


def problems(result: dict[str, Any]) -> list[str]:
    """What is wrong with the cubins of a manifest: spills, too much shared memory, slow wgmma."""
    found = []
    for entry in result["cubins"]:
        limit = min(SHARED_LIMIT[device] for device in entry["runs_on"])
        if entry["spill_bytes"]:
            found.append(f"{entry['file']} spills {entry['spill_bytes']} bytes")
        if entry["shared_bytes"] > limit:
            found.append(f"{entry['file']} needs {entry['shared_bytes']} bytes shared, has {limit}")
        if entry["kernel"] == "attention" and entry["serialised"]:
            found.append(f"{entry['file']} has its wgmma instructions serialised")
    return found


def _triton() -> Any:
    try:
        import triton
        import triton.backends.compiler
        import triton.compiler
    except ImportError as error:
        raise UserError(
            "triton is not installed", "Install it: pip install 'bilateral-serve[kernel]'."
        ) from error
    if triton.knobs.runtime.interpret:
        raise UserError(
            "TRITON_INTERPRET is set: triton interprets and does not compile",
            "Unset it.",
        )
    return triton


@contextlib.contextmanager
def _compiler_settings(triton: Any) -> Iterator[None]:
    """No line tables in the cubins, ptxas's report on stdout, the older of triton's two ptxas.

    Code from the ptxas of CUDA 12 loads with drivers of CUDA 12 and 13, that of 13 only with 13.
    """
    knobs = triton.knobs
    with knobs.nvidia.scope(), knobs.compilation.scope(), knobs.cache.scope():
        knobs.nvidia.dump_ptxas_log = True
        knobs.nvidia.ptxas_blackwell = knobs.nvidia.ptxas.path
        knobs.compilation.disable_line_info = True
        knobs.compilation.always_compile = True
        with tempfile.TemporaryDirectory() as directory:
            knobs.cache.dir = directory
            yield


def kernel_of(specialisation: Specialisation) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The kernel's function, its constants and its compiler options."""
    from bilateral_export.op.kernel import forward, plan, prepare

    chosen = specialisation.configuration
    blocks = {
        "BLOCK_D": specialisation.head_dim,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
    }
    options: dict[str, Any] = {
        "num_warps": chosen.num_warps,
        "num_stages": max(chosen.num_stages, 1),
        "enable_fp_fusion": True,
    }
    if specialisation.kernel == "features":
        return prepare.bilateral_features_kernel, {"BLOCK": FEATURE_BLOCK}, options
    if specialisation.kernel == "key_tiles":
        del blocks["BLOCK_M"]
        return prepare.bilateral_key_tiles_kernel, blocks, options
    if specialisation.kernel == "plan":
        constants = {"C": specialisation.coordinates, "PRECISION": "tf32x3", **blocks}
        return plan.bilateral_plan_kernel, constants, options
    if chosen.max_registers:
        options["maxnreg"] = chosen.max_registers
    constants = {
        "SPATIAL": specialisation.spatial,
        "KEY_TERM": specialisation.key_term,
        "C": max(specialisation.coordinates, 1),
        "P": max(specialisation.features, 16),
        "STAGES": chosen.num_stages,
        "PRECISION": "tf32x3",
        **blocks,
    }
    return forward.bilateral_attention_kernel, constants, options


def _signature(
    specialisation: Specialisation, function: Any, constants: dict[str, Any]
) -> dict[str, str]:
    def type_of(parameter: Any) -> str:
        name = parameter.name
        if name in constants:
            return "constexpr"
        if parameter.annotation_type:
            return cast(str, parameter.annotation_type)
        if name in _INT:
            return "*i32"
        positions = name in ("query_positions", "key_positions") and specialisation.spatial != "dot"
        return "*fp32" if name in _FLOAT or positions else f"*{specialisation.dtype}"

    return {parameter.name: type_of(parameter) for parameter in function.params}


def _divisible_pointers(
    specialisation: Specialisation, function: Any, constants: dict[str, Any]
) -> dict[tuple[int, ...], list[list[object]]]:
    """Every pointer is 16-byte aligned. Strides are handled in the kernels (`multiple_of_8`)."""
    types = _signature(specialisation, function, constants)
    return {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(types.values())
        if kind.startswith("*")
    }


def _read(
    specialisation: Specialisation,
    function: Any,
    constants: dict[str, Any],
    compiled: Any,
    log: str,
) -> Cubin:
    """Take the facts from the compiler's metadata, from ptxas's report and from the PTX."""
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise RuntimeError(f"ptxas reported neither registers nor spills:\n{log}")
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        raise RuntimeError(f"{specialisation.name} needs scratch memory, which the ABI rules out")
    types = _signature(specialisation, function, constants)
    arguments = [(name, kind) for name, kind in types.items() if kind != "constexpr"]
    ptx = compiled.asm["ptx"]
    kinds = {"mma": "mma.sync", "wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma"}
    return Cubin(
        specialisation=specialisation,
        code=compiled.asm["cubin"],
        symbol=compiled.metadata.name,
        shared_bytes=compiled.metadata.shared,
        registers=int(registers.group(1)),
        spill_bytes=int(spills.group(1)) + int(spills.group(2)),
        serialised="wgmma.mma_async instructions are serialized" in log,
        matrix_instructions=tuple(kind for kind, text in kinds.items() if text in ptx),
        arguments=(*_abi_types(arguments), *((name, "pointer") for name in _SCRATCH)),
    )


def _abi_types(arguments: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Types as a C++ launcher sees them."""
    names = {"i32": "int32", "i64": "int64", "fp32": "float"}
    for name, kind in arguments:
        yield name, "pointer" if kind.startswith("*") else names[kind]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the full set, or that of some architectures and types."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_export.op.kernel.compile", description=__doc__
    )
    parser.add_argument("outdir", type=Path, help="directory to create")
    parser.add_argument(
        "--sm", type=int, nargs="+", default=list(ARCHITECTURES), choices=sorted(SHARED_LIMIT)
    )
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument(
        "--only", default="", help="regular expression that the names of cubins have to contain"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    try:
        wanted = _select(options.sm, options.dtype, options.only)
        result = compile_all(options.outdir, wanted, options.workers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = problems(result)
    print(f"{len(result['cubins'])} cubins, {result['total_bytes'] / 1e6:.1f} MB")
    for problem in found:
        print(f"problem: {problem}")
    return 1 if found else 0


def _select(architectures: Sequence[int], dtypes: Sequence[str], only: str) -> list[Specialisation]:
    """The set for compute capabilities; 8.9 gets the code of 8.6."""
    covering = {
        device: architecture
        for architecture, devices in ARCHITECTURES.items()
        for device in devices
    }
    chosen = list(dict.fromkeys(covering[device] for device in architectures))
    wanted = [
        item
        for item in specialisations(chosen)
        if item.dtype in dtypes and re.search(only, item.name)
    ]
    if not wanted:
        raise UserError(f"no cubin has {only!r} in its name", "Leave --only out.")
    return wanted


if __name__ == "__main__":
    raise SystemExit(main())
