"""One kernel compiled to machine code, with what the compiler says about it. Needs no GPU."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from bilateral_export.errors import UserError
from bilateral_export.op.kernel.aot.specialisation import Specialisation
from bilateral_export.op.kernel.launch_config import FEATURE_BLOCK, PRECISION, TILE_RANGES_REGISTERS

# Pointers whose type is not T.
_FLOAT = ("bandwidth", "key_term", "key_bias", "tile_norm", "tile_term", "tile_boxes", "source")
_INT = ("tile_ranges",)
_SCRATCH = ("global_scratch", "profile_scratch")


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


def compile_one(specialisation: Specialisation) -> Cubin:
    """Compile one specialisation. Nothing is cached, so that ptxas reports every time.

    Raises:
        UserError: triton is missing, or runs as an interpreter.
    """
    triton = load_triton()
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


def load_triton() -> Any:
    """Return the package `triton`, as a compiler.

    Raises:
        UserError: It is missing, or runs as an interpreter.
    """
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
    """Set: no line tables in the cubins, ptxas's report on stdout, the older of two ptxas.

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
    """Return the kernel's function, its constants and its compiler options."""
    from bilateral_export.op.kernel import forward, prepare, tile_ranges

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
        constants = {"C": specialisation.coordinates, "PRECISION": PRECISION, **blocks}
        options["maxnreg"] = TILE_RANGES_REGISTERS
        return tile_ranges.bilateral_tile_ranges_kernel, constants, options
    if chosen.max_registers:
        options["maxnreg"] = chosen.max_registers
    constants = {
        "SPATIAL": specialisation.spatial,
        "KEY_TERM": specialisation.key_term,
        "C": max(specialisation.coordinates, 1),
        "P": max(specialisation.features, 16),
        "STAGES": chosen.num_stages,
        "PRECISION": PRECISION,
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
    """Return that every pointer is 16-byte aligned; the kernels handle strides."""
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
    """Return the facts in the compiler's metadata, in ptxas's report and in the PTX."""
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
    """Yield names and types as a C++ launcher sees them."""
    names = {"i32": "int32", "i64": "int64", "fp32": "float"}
    for name, kind in arguments:
        yield name, "pointer" if kind.startswith("*") else names[kind]
