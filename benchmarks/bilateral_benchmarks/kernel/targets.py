"""Performance targets of the fused kernel, judged on what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bilateral_benchmarks.kernel.baselines import PLAIN
from bilateral_benchmarks.kernel.results import BandwidthRow, Row, Target


def targets(
    rows: Sequence[Row], curves: Sequence[BandwidthRow], peaks: Mapping[str, float]
) -> list[Target]:
    """Return every target of the kernel, judged on what was measured; times are warm."""

    def find(way: str, **wanted: Any) -> Row | None:
        for row in rows:
            same = all(getattr(row.shape, name) == value for name, value in wanted.items())
            if row.way == way and row.timing and same:
                return row
        return None

    def time(way: str, **wanted: Any) -> float | None:
        row = find(way, **wanted)
        return row.timing.warm_ms if row and row.timing else None

    def best_plain(**wanted: Any) -> float | None:
        times = [found for name in PLAIN if (found := time(name, **wanted)) is not None]
        return min(times, default=None)

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above is not None and below else None

    found = []
    for tokens in (1024, 4096, 16384):
        long = {"tokens": tokens, "head_dim": 64, "dtype": torch.bfloat16, "name": "long",
                "spatial_kernel": "gaussian"}  # fmt: skip
        for range_kernel in ("dot", "gaussian"):
            case = {**long, "range_kernel": range_kernel}
            label = f"N={tokens} D=64 {range_kernel}/gaussian"
            ours = time("fused", **case)
            found += [
                Target(f"{label}: time over best plain SDPA", ratio(ours, best_plain(**case)),
                       1.10, True),
                Target(f"{label}: FlexAttention's time over ours",
                       ratio(time("flex", **case), ours), 1.3, False),
            ]  # fmt: skip
    longest = {"tokens": 16384, "head_dim": 64, "range_kernel": "dot", "dtype": torch.bfloat16,
               "spatial_kernel": "gaussian"}  # fmt: skip
    memory = {
        name: row.timing.peak_bytes
        for name in ("fused", *PLAIN)
        if (row := find(name, **longest)) and row.timing
    }
    plain_memory = [memory[name] for name in PLAIN if name in memory]
    found.append(
        Target(
            "N=16384: peak memory over plain SDPA's",
            ratio(memory.get("fused"), min(plain_memory, default=None)),
            1.05,
            True,
        )
    )
    deit = {"tokens": 197, "batch": 64, "range_kernel": "dot", "dtype": torch.bfloat16}
    found.append(
        Target(
            "N=197 batch 64: time of SDPA with bias over ours",
            ratio(time("sdpa with bias", **deit), time("fused", **deit)),
            2.0,
            False,
        )
    )
    wide = find("fused", tokens=4096, head_dim=128, range_kernel="dot", spatial_kernel="gaussian")
    found.append(
        Target(
            "N=4096 D=128: share of the measured bf16 GEMM peak",
            ratio(wide.tflops if wide else None, peaks.get("bf16")),
            0.5,
            False,
        )
    )

    def point(*wanted: object) -> tuple[float | None, float | None]:
        for row in curves:
            if (row.shape.tokens, row.shape.range_kernel, row.shape.bandwidth) == wanted:
                return row.warm_ms, row.without_skipping_ms
        return None, None

    for tokens, range_kernel in ((4096, "dot"), (4096, "gaussian"), (16384, "dot")):
        label = f"N={tokens} {range_kernel}/gaussian"
        narrow, _ = point(tokens, range_kernel, 0.02)
        flash = best_plain(tokens=tokens, head_dim=64, name="long", dtype=torch.bfloat16)
        found += [
            Target(f"{label} sigma 2%: best plain SDPA over ours",
                   ratio(flash, narrow), 4.0, False),
            Target(f"{label} sigma inf: with skipping over without",
                   ratio(*point(tokens, range_kernel, math.inf)),
                   1.03, True),
        ]  # fmt: skip
    return found
