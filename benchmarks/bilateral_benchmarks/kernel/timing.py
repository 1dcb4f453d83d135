"""GPU timing by its own clock: median of many, with a warm or a cold L2 cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# At least so many repetitions, and at least so long together.
REPETITIONS = 20
SECONDS = 0.2
# About 0.3 ms: longer than the host takes to launch any of the ways but the eager one.
WAIT_CYCLES = 500_000


@dataclass(frozen=True)
class Timing:
    """Milliseconds on the GPU's clock, and the memory the work needs beyond its operands.

    Attributes:
        warm_ms: Median with the operands in L2 as the last repetition left them.
        cold_ms: Median with L2 overwritten before every repetition.
        host_ms: Median of the time the host takes to launch it; where it is more than `warm_ms`,
            the GPU waits, unless the launches are captured in a CUDA graph.
        peak_bytes: Highest allocation during one repetition, above what was there before.
    """

    warm_ms: float
    cold_ms: float
    peak_bytes: int
    host_ms: float = 0.0


def measure(run: Callable[[], object], seconds: float = SECONDS) -> Timing:
    """Warm up (which compiles), then time `run` with a warm and with a cold cache.

    Args:
        run: The work, put on the current stream.
        seconds: How long to repeat it, at least, each.
    """
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda")
    warm, host = _medians(run, None, seconds)
    return Timing(warm, _medians(run, flush, seconds)[0], peak, host)


def _medians(
    run: Callable[[], object], flush: torch.Tensor | None, seconds: float
) -> tuple[float, float]:
    """Return the milliseconds on the GPU and on the host.

    The GPU is kept waiting while the host launches, so that a slow launch is not in its time.
    """
    device: list[float] = []
    host: list[float] = []
    while len(device) < REPETITIONS or (sum(device) < 1e3 * seconds and len(device) < 500):
        if flush is not None:
            flush.zero_()
        torch.cuda._sleep(WAIT_CYCLES)  # type: ignore[no-untyped-call]
        begin, end = (_event() for _ in range(2))
        begin.record()
        started = time.perf_counter()
        run()
        host.append(1e3 * (time.perf_counter() - started))
        end.record()
        end.synchronize()
        device.append(begin.elapsed_time(end))
    return statistics.median(device), statistics.median(host)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def gemm_peak(dtype: torch.dtype) -> float:
    """Return the TFLOP/s of one large matrix product on this device now."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / (measure(lambda: a @ b).warm_ms * 1e-3) / 1e12
