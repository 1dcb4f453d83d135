"""Times work on a GPU: by its own clock, median of many, with a warm or a cold L2 cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

# At least so many repetitions, and at least so long together.
REPETITIONS = 20
SECONDS = 0.2


@dataclass(frozen=True)
class Timing:
    """Milliseconds on the GPU's clock, and the memory the work needs beyond its operands.

    Attributes:
        warm_ms: Median with the operands in L2 as the last repetition left them.
        cold_ms: Median with L2 overwritten before every repetition.
        peak_bytes: Highest allocation during one repetition, above what was there before.
    """

    warm_ms: float
    cold_ms: float
    peak_bytes: int


def measure(run: Callable[[], object]) -> Timing:
    """Warm up (which compiles), then time `run` with a warm and with a cold cache."""
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
    return Timing(_median(run, None), _median(run, flush), peak)


def _median(run: Callable[[], object], flush: torch.Tensor | None) -> float:
    times: list[float] = []
    while len(times) < REPETITIONS or (sum(times) < 1e3 * SECONDS and len(times) < 1000):
        if flush is not None:
            flush.zero_()
        begin, end = (_event() for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def gemm_peak(dtype: torch.dtype) -> float:
    """TFLOP/s of one large matrix product: what the tensor cores give on this device now."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / (measure(lambda: a @ b).warm_ms * 1e-3) / 1e12
