"""Time and peak memory of one ONNX file on one runtime, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_TIMEOUT_S = 300.0
# Fewer than three calls are enough where they take this long together.
_LONG_S = 10.0


class Isolated(BaseModel):
    """What one process measured.

    Attributes:
        median_ms: Of the calls after the first; None if it failed.
        low_ms: Lower end of the median's 95% interval; None: too few calls.
        high_ms: Upper end.
        fastest_ms: The shortest of them.
        peak_mib: Growth of the resident memory's peak from before the model was loaded.
        run_mib: The same from after it was loaded: what a call needs on top of the weights.
        failure: Why it failed, such as for want of memory.
    """

    model_config = ConfigDict(frozen=True)

    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    fastest_ms: float | None = None
    peak_mib: float | None = None
    run_mib: float | None = None
    failure: str | None = None


def measure_isolated(
    model: Path, runtime: str, *, batch: int = 1, seconds: float = 1.0, memory_mib: int = 0
) -> Isolated:
    """Load a file in a fresh process, run it for a while, and say how fast and how large it was.

    Args:
        model: The ONNX file.
        runtime: The runtime's name in the registry.
        batch: Size of the free first axis.
        seconds: How long to repeat calls; three calls at least, or ten seconds of them.
        memory_mib: Limit of the process's address space; 0: none. Beyond it, allocation fails.
    """
    arguments = [str(model), runtime, str(batch), str(seconds), str(memory_mib)]
    try:
        said = run_module(__name__, *arguments, timeout_s=_TIMEOUT_S)
    except ProcessFailedError as error:
        reason = str(error)
        if memory_mib and "allocate memory" in reason:
            reason = f"out of memory: more than {memory_mib:,} MiB"
        return Isolated(failure=reason[:200])
    return Isolated.model_validate_json(said.splitlines()[-1])


class ProcessFailedError(Exception):
    """Why a process failed: the last line it wrote to standard error, its signal, or the time."""


def run_module(module: str, *arguments: str, timeout_s: float) -> str:
    """Run a module in a process of its own that imports as this one does; return what it prints.

    Raises:
        ProcessFailedError: It failed, or took too long.
    """
    try:
        result = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessFailedError(f"took longer than {timeout_s:g} s") from error
    if result.returncode:
        lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
        raise ProcessFailedError(lines[-1] if lines else f"died with signal {-result.returncode}")
    return result.stdout


def status_mib(field: str, pid: int | str = "self") -> float:
    """Return a size out of a process's status, such as "VmHWM", the peak of its resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _main(path: str, runtime: str, batch: int, seconds: float, memory_mib: int) -> None:
    import resource
    import statistics
    import time

    import numpy as np

    from bilateral_benchmarks.load.inputs import made_up
    from bilateral_benchmarks.statistics.percentiles import percentile
    from bilateral_export.runners.registry import RUNTIMES

    runner = RUNTIMES[runtime].load(Path(path))
    if memory_mib:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    before = status_mib("VmRSS")
    with runner:
        arrays = made_up(runner.inputs, batch)
        loaded = status_mib("VmRSS")
        _reset_peak()
        runner.run(arrays)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (len(times) < 3 and sum(times) < _LONG_S) or time.perf_counter() < end:
            start = time.perf_counter()
            runner.run(arrays)
            times.append(time.perf_counter() - start)
        peak = status_mib("VmHWM")
    ends = percentile(np.array(times), 50.0)
    result = {
        "median_ms": 1e3 * statistics.median(times),
        "low_ms": ends.low_ms,
        "high_ms": ends.high_ms,
        "fastest_ms": 1e3 * min(times),
        "peak_mib": peak - before,
        "run_mib": peak - loaded,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
