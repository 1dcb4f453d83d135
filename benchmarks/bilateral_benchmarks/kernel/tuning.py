"""Block sizes by timing: the fastest candidate of every case, recorded in `launch_config.csv`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bilateral_benchmarks.kernel.baselines import Shape, fused, problem
from bilateral_benchmarks.kernel.configurations import (
    CANDIDATES,
    TO_BE_TIMED,
    cases,
    fits,
    heaviest,
    write,
)
from bilateral_benchmarks.kernel.timing import measure
from bilateral_export.files import write_text
from bilateral_export.op.architectures import nearest_compiled
from bilateral_export.op.kernel.launch_config import (
    TABLE,
    Case,
    LaunchConfig,
    table,
)

# The head sizes that the targets name come first, in case the time does not do for all.
ORDER = (64, 128, 32, 16, 256)


def tune(in_time: Callable[[], bool], output: Path | None = None) -> bool:
    """Time the candidate block sizes on this device; return whether the time was enough.

    Cases that are recorded as measured are left alone, so that a second run goes on.

    Args:
        in_time: Whether another case may begin.
        output: Where to leave a copy of the table, besides the package.
    """
    major, minor = torch.cuda.get_device_capability()
    architecture = nearest_compiled(10 * major + minor)
    assert architecture is not None, "older GPUs are refused"
    rows = dict(table())
    wanted = [case for case in cases([architecture]) if rows[case].status != "measured"]
    for case in sorted(wanted, key=lambda case: (case.bits, ORDER.index(case.head_dim))):
        if not in_time():
            return False
        fastest, milliseconds = _fastest(case)
        if fastest is not None:
            rows[case] = replace(fastest, status="measured")
            print(f"{case}: {fastest}, {milliseconds:.3f} ms", flush=True)
            write(rows)
            if output is not None:
                write_text(output / TABLE.name, TABLE.read_text(encoding="utf-8"))
    table.cache_clear()
    return True


def _fastest(case: Case) -> tuple[LaunchConfig | None, float]:
    """Return the fastest candidate that the ahead-of-time build takes, and its time."""
    dtype = torch.bfloat16 if case.bits == 16 else torch.float32
    shape = Shape(
        "tuning", 4, 8, 4096, case.head_dim,
        dtype=dtype, spatial_kernel=case.spatial_kernel, features=case.features,
    )  # fmt: skip
    given = problem(shape, "cuda")
    timed: list[tuple[float, LaunchConfig]] = []
    for candidate in (*TO_BE_TIMED[case.bits], *CANDIDATES[case.bits]):
        try:
            time = measure(fused(given, False, candidate), seconds=0.03).warm_ms
        except Exception as error:  # Triton has no common base of its compilation errors.
            print(f"{case} {candidate}: {type(error).__name__}", file=sys.stderr)
            continue
        timed.append((time, candidate))
    for time, candidate in sorted(timed, key=lambda one: one[0]):
        if all(map(fits, heaviest(case, candidate))):
            return candidate, time
    return None, 0.0
