"""Block sizes of the fused kernel by what the compiler reports, without a GPU.

`bilateral kernels block-sizes` compiles every case of the table with the
candidates below, in order of preference, and takes the first that fits: no register spilled, no
wgmma serialised, shared memory within the device's limit. It fills in what `launch_config.csv`
lacks; with `--all` it replaces predictions, never what was measured on a GPU
(`bilateral bench kernel --tune`).
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from bilateral_export.errors import UserError
from bilateral_export.files import write_text
from bilateral_export.op.architectures import shared_limit
from bilateral_export.op.contract import SPATIAL_KERNELS
from bilateral_export.op.kernel.aot.cubin import compile_one, load_triton
from bilateral_export.op.kernel.aot.specialisation import Specialisation
from bilateral_export.op.kernel.aot.workers import worker_pool
from bilateral_export.op.kernel.launch_config import (
    FEATURE_ROWS,
    HEAD_DIMS,
    TABLE,
    Case,
    LaunchConfig,
    table,
)

# In order of preference: many rows per program, so that each key tile is read from L2 less often;
# 64 keys per tile, so that rescaling the accumulator is rare; 128 registers, so that two programs
# of 8 warps share a multiprocessor; three tiles in flight.
CANDIDATES: dict[int, tuple[LaunchConfig, ...]] = {
    16: tuple(
        LaunchConfig(*sizes)
        for sizes in (
            (128, 64, 8, 3, 128),
            (128, 64, 8, 2, 128),
            (128, 64, 8, 3, 0),
            (128, 64, 8, 2, 0),
            (128, 32, 8, 3, 0),
            (128, 32, 8, 2, 0),
            (64, 64, 4, 2, 0),
            (64, 32, 4, 2, 0),
            (64, 32, 8, 2, 0),
            (64, 16, 4, 2, 0),
            (32, 32, 4, 2, 0),
            (32, 16, 4, 2, 0),
        )
    ),
    32: tuple(
        LaunchConfig(*sizes)
        for sizes in (
            (128, 32, 8, 2, 0),
            (64, 32, 4, 2, 0),
            (64, 32, 8, 2, 0),
            (64, 16, 4, 2, 0),
            (64, 16, 8, 2, 0),
            (32, 32, 4, 2, 0),
            (32, 16, 4, 2, 0),
            (32, 16, 8, 2, 0),
            (32, 16, 8, 1, 0),
            (16, 16, 8, 1, 0),
        )
    ),
}
# Fewer instructions per weight, but one program on a multiprocessor, or half the rows for each read
# of a key tile: only a GPU says whether that is faster (`--tune` times them too).
TO_BE_TIMED: dict[int, tuple[LaunchConfig, ...]] = {
    16: tuple(
        LaunchConfig(*sizes)
        for sizes in (
            (128, 128, 8, 3, 0),
            (128, 128, 8, 2, 0),
            (128, 64, 4, 3, 0),
            (64, 128, 4, 2, 0),
            (64, 64, 4, 3, 128),
        )
    ),
    32: (),
}
HEADER = """\
# How the fused kernel is cut into programs; configurations.py explains the columns.
# status: measured (by timing, on that architecture) or predicted (from what the compiler reports:
# `bilateral kernels block-sizes`).
"""
COLUMNS = (
    "architecture",
    "bits",
    "spatial_kernel",
    "head_dim",
    "features",
    "block_m",
    "block_n",
    "num_warps",
    "num_stages",
    "max_registers",
    "status",
)


def cases(architectures: Sequence[int]) -> Iterator[Case]:
    """Yield every row of the table."""
    for architecture in architectures:
        for bits in CANDIDATES:
            for spatial_kernel in SPATIAL_KERNELS:
                for features in FEATURE_ROWS if spatial_kernel == "dot" else (0,):
                    for head_dim in HEAD_DIMS:
                        yield Case(architecture, bits, spatial_kernel, head_dim, features)


def heaviest(case: Case, chosen: LaunchConfig) -> Iterator[Specialisation]:
    """Yield the specialisations of a case that need most registers and shared memory.

    Those that hold least are tried as well: the compiler at times gives them more registers.
    """
    most = Specialisation(
        "attention",
        case.architecture,
        "bf16" if case.bits == 16 else "fp32",
        chosen,
        head_dim=case.head_dim,
        spatial=case.spatial_kernel,
        coordinates=3 if case.spatial_kernel == "gaussian" else 0,
        features=case.features,
        key_term=True,
    )
    yield most
    if case.spatial_kernel != "gaussian":
        yield replace(most, key_term=False)
    if case.features > 16:
        yield replace(most, features=64)


def fits(specialisation: Specialisation) -> bool:
    """Return whether it compiles without spills or serialised wgmma, within shared memory."""
    limit = shared_limit(specialisation.architecture)
    try:
        cubin = compile_one(specialisation)
    except UserError:
        raise
    except Exception as error:  # Triton has no common base of its compilation errors.
        print(f"{specialisation.name}: {type(error).__name__}", file=sys.stderr)
        return False
    return not cubin.spill_bytes and not cubin.serialised and cubin.shared_bytes <= limit


def choose(group: Sequence[Case]) -> dict[Case, LaunchConfig]:
    """Return the first candidate that fits, for cases that differ in the head dimension, ascending.

    What does not fit a head does not fit a larger one either, and is not tried again.
    """
    chosen: dict[Case, LaunchConfig] = {}
    start = 0
    for case in group:
        candidates = CANDIDATES[case.bits]
        while start < len(candidates) and not all(map(fits, heaviest(case, candidates[start]))):
            start += 1
        if start < len(candidates):
            chosen[case] = candidates[start]
    return chosen


def write(rows: Mapping[Case, LaunchConfig]) -> None:
    """Write `launch_config.csv`, sorted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    order = {kernel: number for number, kernel in enumerate(SPATIAL_KERNELS)}
    for case, chosen in sorted(
        rows.items(),
        key=lambda row: (
            row[0].architecture,
            row[0].bits,
            order[row[0].spatial_kernel],
            row[0].features,
            row[0].head_dim,
        ),
    ):
        writer.writerow(
            (
                *(case.architecture, case.bits, case.spatial_kernel, case.head_dim, case.features),
                *(chosen.block_m, chosen.block_n, chosen.num_warps, chosen.num_stages),
                *(chosen.max_registers, chosen.status),
            )
        )
    write_text(TABLE, HEADER + text.getvalue())


def fill_table(
    architectures: Sequence[int], *, anew: bool, workers: int, say: Callable[[str], None]
) -> list[Case]:
    """Choose block sizes for what the table lacks; return the cases that no candidate fits.

    Args:
        architectures: Whose rows.
        anew: Whether to choose anew also where the table has a prediction.
        workers: Compiling processes.
        say: Called with a line for each case.

    Raises:
        UserError: Triton is missing, or is its own interpreter.
    """
    load_triton()
    rows = {case: row for case, row in table().items() if not anew or row.status == "measured"}
    groups = [
        [case for case in group if case not in rows]
        for _, group in groupby(cases(architectures), key=lambda case: replace(case, head_dim=0))
    ]
    wanted = [group for group in groups if group]
    with worker_pool(workers) as pool:
        for chosen in pool.map(choose, wanted):
            for case, configuration in chosen.items():
                say(f"{case} {configuration}")
            rows.update(chosen)
            write(rows)
    return [case for group in wanted for case in group if case not in rows]
