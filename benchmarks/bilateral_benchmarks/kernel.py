"""The fused kernel on a GPU: `python -m bilateral_benchmarks.kernel [--output DIR]`.

In one process: the fused kernel, PyTorch's attention without a spatial term (the ceiling), with the
materialised bias, FlexAttention, the decomposed form in eager mode and compiled; then time against
bandwidth, with the share of key tiles skipped and the error. Every target is printed as passed or
missed, with the number. `--tune` times the candidate block sizes first and records the fastest in
`configurations.csv`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bilateral_benchmarks.kernel_timing import Timing, gemm_peak, measure
from bilateral_benchmarks.kernel_ways import PLAIN, WAYS, Problem, Shape, fused, problem
from bilateral_benchmarks.report import Context
from bilateral_export.errors import UserError
from bilateral_export.files import write_text

BANDWIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, math.inf)
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Row:
    """One way on one shape; `timing` is missing where it does not run, and `why` says why."""

    shape: Shape
    way: str
    timing: Timing | None
    why: str = ""
    error: float | None = None

    @property
    def tflops(self) -> float:
        """TFLOP/s of the two products, warm."""
        return self.shape.flops / (self.timing.warm_ms * 1e-3) / 1e12 if self.timing else 0.0


@dataclass(frozen=True)
class BandwidthRow:
    """The fused kernel at one bandwidth (a share of the extent).

    Attributes:
        skipped: Share of the whole key tiles that no program read.
        error: Largest difference from the same kernel without skipping, over the largest value.
    """

    shape: Shape
    warm_ms: float
    without_skipping_ms: float
    skipped: float
    error: float


@dataclass(frozen=True)
class Target:
    """One promise, and what came out: `ratio` has to be at most (or at least) `limit`."""

    name: str
    ratio: float | None
    limit: float
    at_most: bool

    @property
    def passed(self) -> bool:
        """Whether it was measured and kept."""
        if self.ratio is None:
            return False
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        got = "not measured" if self.ratio is None else f"{self.ratio:.2f}"
        return f"{'pass' if self.passed else 'MISS'}  {self.name}: {got} ({sign} {self.limit:.2f})"


def shapes() -> Iterator[Shape]:
    """Every shape of the comparison."""
    deit = Shape("DeiT-S", 1, 6, 197, 64, prefix=1)
    for batch in (1, 8, 64, 256):
        yield replace(deit, batch=batch)
    yield replace(deit, batch=64, dtype=torch.float16)
    yield replace(deit, batch=64, range_kernel="gaussian")
    long = Shape("long", 4, 8, 1024, 64)
    for tokens, batch in ((1024, 16), (4096, 4), (16384, 1)):
        for head_dim in (16, 32, 64, 128):
            yield replace(long, tokens=tokens, batch=batch, head_dim=head_dim)
        yield replace(long, tokens=tokens, batch=batch, dtype=torch.float16)
        yield replace(long, tokens=tokens, batch=batch, range_kernel="gaussian")
        yield replace(long, tokens=tokens, batch=batch, spatial_kernel="dot")
        yield replace(long, tokens=tokens, batch=batch, spatial_kernel="none")
    language = Shape("causal LM", 64, 8, 256, 16, causal=True)
    yield language
    yield replace(language, range_kernel="gaussian")
    yield Shape("float32", 4, 8, 1024, 64, dtype=torch.float32)


def compare(shape: Shape) -> list[Row]:
    """Time every way on one shape, and measure the error of those that compute the operator."""
    case = problem(shape, "cuda")
    exact = _exact(case)
    rows = []
    for name, way in WAYS.items():
        try:
            run = way(case)
            output = run()
            error = None
            if name not in PLAIN or shape.spatial_kernel == "none":
                last = output[-1:, -1:].double()
                error = float((last - exact).norm() / exact.norm())
            rows.append(Row(shape, name, measure(run), error=error))
        except (RuntimeError, torch.OutOfMemoryError) as problem_met:
            why = str(problem_met).strip().splitlines() or [type(problem_met).__name__]
            rows.append(Row(shape, name, None, why[0][:120]))
        torch.cuda.empty_cache()
    return rows


def _exact(case: Problem) -> torch.Tensor:
    """The operator in float64, of the last head of the last sequence."""
    from bilateral_export.op.attention import attention

    query, key, value = (tensor[-1:, -1:].double() for tensor in (case.query, case.key, case.value))
    positions, bandwidth = case.positions, case.bandwidth
    if positions is not None:
        positions = (positions[-1:] if case.shape.spatial_kernel == "dot" else positions).double()
    last = replace(
        case.operands, query=query, key=key, value=value, query_positions=positions,
        key_positions=positions, bandwidth=None if bandwidth is None else bandwidth[-1:].double(),
    )  # fmt: skip
    return attention(**vars(last))


def bandwidth_curve(shape: Shape) -> list[BandwidthRow]:
    """Time, tiles skipped and error of the fused kernel against the bandwidth."""
    rows = []
    for bandwidth in BANDWIDTHS:
        case = problem(replace(shape, bandwidth=bandwidth), "cuda")
        skipping, whole = (fused(case, skip_tiles=skip) for skip in (True, False))
        difference = (skipping().float() - whole().float()).abs().max()
        rows.append(
            BandwidthRow(
                case.shape,
                measure(skipping).warm_ms,
                measure(whole).warm_ms,
                tiles_skipped(case),
                float(difference / case.value.float().abs().max()),
            )
        )
    return rows


def tiles_skipped(case: Problem) -> float:
    """The share of key tiles that the plan leaves out."""
    from bilateral_export.op.kernel.launcher import prepare

    launch = prepare(case.operands, skip_tiles=True)
    low, high = launch.tile_ranges(*launch.key_terms()).unbind(-1)
    return 1 - float((high - low).clamp(min=0).float().mean()) / max(1, launch.key_tiles)


def targets(
    rows: Sequence[Row], curves: Sequence[BandwidthRow], peaks: Mapping[str, float]
) -> list[Target]:
    """Every target of the kernel, judged on what was measured; times are warm."""

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
    for point in curves:
        label = f"N={point.shape.tokens} {point.shape.range_kernel}/gaussian"
        if point.shape.bandwidth == 0.02:
            case = {"tokens": point.shape.tokens, "head_dim": point.shape.head_dim, "name": "long"}
            flash = best_plain(**case)
            found.append(
                Target(f"{label} sigma 2%: plain flash over ours", ratio(flash, point.warm_ms), 4.0,
                       False)
            )  # fmt: skip
        if math.isinf(point.shape.bandwidth):
            found.append(
                Target(f"{label} sigma inf: with skipping over without",
                       ratio(point.warm_ms, point.without_skipping_ms), 1.03, True)
            )  # fmt: skip
    return found


def markdown(
    rows: Sequence[Row],
    curves: Sequence[BandwidthRow],
    peaks: Mapping[str, float],
    judged: Sequence[Target],
) -> str:
    """The report as text."""
    lines = [f"GEMM peak, TFLOP/s: {', '.join(f'{k} {v:.0f}' for k, v in peaks.items())}", ""]
    lines += [
        "| shape | kernels | way | warm ms | cold ms | TFLOP/s | of peak | peak MiB | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = row.shape
        dtype = DTYPES[shape.dtype]
        label = f"{shape.name} B{shape.batch} H{shape.heads} N{shape.tokens} D{shape.head_dim}"
        kernels = f"{shape.range_kernel}/{shape.spatial_kernel} {dtype}"
        if row.timing is None:
            lines.append(f"| {label} | {kernels} | {row.way} | does not run: {row.why} | | | | | |")
            continue
        error = "" if row.error is None else f"{row.error:.1e}"
        lines.append(
            f"| {label} | {kernels} | {row.way} | {row.timing.warm_ms:.3f} |"
            f" {row.timing.cold_ms:.3f} | {row.tflops:.0f} | {row.tflops / peaks[dtype]:.0%} |"
            f" {row.timing.peak_bytes / 2**20:.1f} | {error} |"
        )
    lines += [
        "",
        "| N | kernels | sigma / extent | ms | without skipping | tiles skipped | error |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.shape.tokens} | {row.shape.range_kernel}/gaussian | {row.shape.bandwidth:g} |"
        f" {row.warm_ms:.3f} | {row.without_skipping_ms:.3f} | {row.skipped:.0%} |"
        f" {row.error:.1e} |"
        for row in curves
    ]
    return "\n".join([*lines, "", *(str(target) for target in judged), ""])


def require_gpu() -> None:
    """Refuse, in one line, where there is no GPU that the kernel runs on.

    Raises:
        UserError: PyTorch sees no GPU, or one below compute capability 8.0, or triton is missing.
    """
    fix = (
        "Run `python -m bilateral_benchmarks.kernel --output benchmarks/results` on a machine with"
        " an NVIDIA GPU of compute capability 8.0 or later, a CUDA build of PyTorch and triton."
    )
    if not torch.cuda.is_available():
        raise UserError("this measurement needs an NVIDIA GPU, and PyTorch sees none", fix)
    if importlib.util.find_spec("triton") is None:
        raise UserError("triton is not installed", fix)
    if torch.cuda.get_device_capability() < (8, 0):
        raise UserError(f"{torch.cuda.get_device_name()} is older than compute capability 8.0", fix)


def tune() -> None:
    """Time the candidate block sizes on this device and record the fastest in the table."""
    from bilateral_benchmarks.kernel_configurations import CANDIDATES, cases, write
    from bilateral_export.op.kernel.configurations import ARCHITECTURES, table

    major, minor = torch.cuda.get_device_capability()
    device = 10 * major + minor
    architecture = max(known for known in ARCHITECTURES if known <= device)
    rows = dict(table())
    for row in cases([architecture]):
        dtype = torch.bfloat16 if row.bits == 16 else torch.float32
        shape = Shape(
            "tuning", 4, 8, 4096, row.head_dim, dtype=dtype, spatial_kernel=row.spatial_kernel
        )
        case = problem(shape, "cuda")
        best, fastest = math.inf, None
        for candidate in CANDIDATES[row.bits]:
            try:
                time = measure(fused(case, False, candidate)).warm_ms
            except Exception as error:  # Triton has no common base of its compilation errors.
                print(f"{row} {candidate}: {type(error).__name__}", file=sys.stderr)
                continue
            if time < best:
                best, fastest = time, candidate
        if fastest is not None:
            rows[row] = replace(fastest, status="measured")
            print(f"{row}: {fastest}, {best:.3f} ms", flush=True)
            write(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge, print; exit code 1 if a target was missed, 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.kernel", description=__doc__
    )
    parser.add_argument("--output", type=Path, help="directory for kernel.json and kernel.md")
    parser.add_argument("--tune", action="store_true", help="choose block sizes by timing first")
    options = parser.parse_args(arguments)
    try:
        return 0 if bench_kernel(options.output, options.tune) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def bench_kernel(output: Path | None, tune_first: bool) -> bool:
    """Time every way over every shape, print the report, and say whether all targets were met.

    Args:
        output: Directory for `kernel.json` and `kernel.md`, or None.
        tune_first: Whether to choose block sizes by timing first.

    Raises:
        UserError: There is no NVIDIA GPU.
    """
    require_gpu()
    if tune_first:
        tune()
    context = Context.now()
    peaks = {name: gemm_peak(dtype) for dtype, name in DTYPES.items()}
    rows = [row for shape in shapes() for row in compare(shape)]
    long = Shape("long", 4, 8, 4096, 64)
    curves = [
        row
        for shape in (long, replace(long, range_kernel="gaussian"),
                      replace(long, tokens=16384, batch=1))
        for row in bandwidth_curve(shape)
    ]  # fmt: skip
    judged = targets(rows, curves, peaks)
    report = markdown(rows, curves, peaks, judged)
    print(report)
    if output:
        facts = {
            "context": context.model_dump(),
            "gemm_peak_tflops": peaks,
            "rows": [asdict(row) for row in rows],
            "bandwidth": [asdict(row) for row in curves],
            "targets": [{**asdict(target), "passed": target.passed} for target in judged],
        }
        write_text(output / "kernel.json", json.dumps(facts, indent=1, default=str) + "\n")
        write_text(output / "kernel.md", f"`{context.command}`\n\n{report}")
    return all(target.passed for target in judged)


if __name__ == "__main__":
    raise SystemExit(main())
