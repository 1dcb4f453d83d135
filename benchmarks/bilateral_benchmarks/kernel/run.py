"""Times of the fused kernel and its baselines on a GPU (`bilateral bench kernel`).

In one process: the fused kernel, PyTorch's attention without a spatial term (the ceiling) and with
the materialised bias; then time against bandwidth, with the share of key tiles skipped and the
error; then what takes long to compile or to run: FlexAttention, the decomposed form in eager mode
and compiled. Every target is reported as passed or missed, with the number. `--tune` times the
candidate block sizes first, for at most half of the time, and records the fastest in
`launch_config.csv`.

What is measured is saved after every case, and nothing begins after `--minutes`: the same command
again goes on where the last one stopped, for whatever reason. What an earlier run measured of the
fused kernel is measured again if its code or its block sizes are other ones now.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from bilateral_benchmarks.kernel.baselines import (
    BASELINES,
    DTYPES,
    PLAIN,
    SLOW,
    Problem,
    Shape,
    fused,
    problem,
)
from bilateral_benchmarks.kernel.results import (
    CURVE,
    BandwidthRow,
    Results,
    Row,
    begin,
    mark,
)
from bilateral_benchmarks.kernel.targets import targets
from bilateral_benchmarks.kernel.timing import gemm_peak, measure
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.files import write
from bilateral_export.errors import UserError
from bilateral_export.op.architectures import AMPERE

BANDWIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, math.inf)
# Machines with such a GPU are often had for ten minutes at a time.
MINUTES = 9.0


def shapes() -> Iterator[Shape]:
    """Yield every shape of the comparison."""
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


def compare(case: Problem, way: str) -> Row:
    """Return the time of one baseline, and its error if it computes the operator.

    Whatever it raises is its row: compilers and drivers have no common base of their errors.
    """
    shape = case.shape
    try:
        run = BASELINES[way](case)
        output = run()
        error = None
        if way not in PLAIN or shape.spatial_kernel == "none":
            last = output[-1:, -1:].double()
            exact = _exact(case)
            error = float((last - exact).norm() / exact.norm())
        return Row(shape, way, measure(run), error=error)
    except Exception as problem_met:
        return _not_run(shape, way, problem_met)


def _not_run(shape: Shape, way: str, problem_met: Exception) -> Row:
    why = str(problem_met).strip().splitlines() or [""]
    return Row(shape, way, None, f"{type(problem_met).__name__}: {why[0]}"[:160])


def _exact(case: Problem) -> torch.Tensor:
    """Return the operator in float64, of the last head of the last sequence."""
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


def bandwidth_row(shape: Shape) -> BandwidthRow:
    """Time, tiles skipped and error of the fused kernel at one bandwidth."""
    case = problem(shape, "cuda")
    skipping, whole = (fused(case, skip_tiles=skip) for skip in (True, False))
    difference = (skipping().float() - whole().float()).abs().max()
    return BandwidthRow(
        shape,
        measure(skipping).warm_ms,
        measure(whole).warm_ms,
        tiles_skipped(case),
        float(difference / case.value.float().abs().max()),
    )


def tiles_skipped(case: Problem) -> float:
    """Return the share of key tiles that the plan leaves out."""
    from bilateral_export.op.kernel.launch import prepare

    launch = prepare(case.operands, skip_tiles=True)
    low, high = launch.tile_ranges(*launch.key_terms()).unbind(-1)
    return 1 - float((high - low).clamp(min=0).float().mean()) / max(1, launch.key_tiles)


def require_gpu() -> None:
    """Refuse, in one line, where there is no GPU that the kernel runs on.

    Raises:
        UserError: PyTorch sees no GPU, or one below compute capability 8.0, or triton is missing.
    """
    fix = (
        "Run `bilateral bench kernel --output benchmarks/results` on a machine"
        " with an NVIDIA GPU of compute capability 8.0 or later,"
        " a CUDA build of PyTorch and triton."
    )
    if not torch.cuda.is_available():
        raise UserError("this measurement needs an NVIDIA GPU, and PyTorch sees none", fix)
    if importlib.util.find_spec("triton") is None:
        raise UserError("triton is not installed", fix)
    if torch.cuda.get_device_capability() < divmod(AMPERE, 10):
        raise UserError(f"{torch.cuda.get_device_name()} is older than compute capability 8.0", fix)


def measure_all(results: Results, in_time: Callable[[], bool], save: Callable[[], None]) -> bool:
    """Measure what is missing, saving after every case; whether the time was enough for all.

    In the order of what is wanted most, in case it is not.
    """
    for dtype, name in DTYPES.items():
        if name not in results.gemm_peak_tflops:
            results.gemm_peak_tflops[name] = gemm_peak(dtype)
    for way, shape in _in_order():
        if results.has(shape, way):
            continue
        if not in_time():
            return False
        results.current = mark(way, shape)
        save()
        if way == CURVE:
            point: BandwidthRow | Row = _curve_point(shape)
        else:
            point = compare(problem(shape, "cuda"), way)
        _require_working_device(way)
        torch.cuda.empty_cache()
        results.add(point)
        results.current = ""
        save()
    return True


def _in_order() -> Iterator[tuple[str, Shape]]:
    """Yield the quick baselines by shape, near each other in time; the curves; the rest."""
    quick = [way for way in BASELINES if way not in SLOW]
    yield from ((way, shape) for shape in shapes() for way in quick)
    yield from ((CURVE, shape) for shape in curve_shapes())
    yield from ((way, shape) for way in SLOW for shape in shapes())


def _curve_point(shape: Shape) -> BandwidthRow | Row:
    try:
        return bandwidth_row(shape)
    except Exception as problem_met:
        return _not_run(shape, CURVE, problem_met)


def _require_working_device(way: str) -> None:
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        # The mark stays in the file: the next run does not try this way on this shape again.
        raise UserError(
            f"'{way}' left the GPU in error: {error}", "Run the same command again: it goes on."
        ) from error


def curve_shapes() -> Iterator[Shape]:
    """Yield every point of the curves of time against bandwidth."""
    long = Shape("long", 4, 8, 4096, 64)
    for shape in (
        long,
        replace(long, range_kernel="gaussian"),
        replace(long, tokens=16384, batch=1),
    ):
        for bandwidth in BANDWIDTHS:
            yield replace(shape, bandwidth=bandwidth)


def bench_kernel(output: Path | None, tune_first: bool, minutes: float = MINUTES) -> Results:
    """Time every baseline over every shape; return the results, with the targets judged.

    Args:
        output: Directory for `kernel.json`, `kernel.md` and `kernel.html`, or None. Results of an
            earlier run on the same device are kept, and what they lack is measured.
        tune_first: Whether to choose block sizes by timing first, in at most half of the time.
        minutes: Nothing begins after so long.

    Raises:
        UserError: There is no NVIDIA GPU, or the directory holds another device's results.
    """
    require_gpu()
    started = time.monotonic()
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    context = Context.now()
    begin(output, device)  # refuses the results of another device before time is spent

    def within(share: float) -> Callable[[], bool]:
        return lambda: time.monotonic() < started + 60 * minutes * share

    tuned = True
    if tune_first:
        from bilateral_benchmarks.kernel.tuning import tune

        tuned = tune(within(0.5), output)
    results = begin(output, device)
    results.context = context
    results.complete = measure_all(results, within(1.0), lambda: results.save(output)) and tuned
    results.targets = targets(results.rows, results.bandwidth, results.gemm_peak_tflops)
    if output:
        write(results, output / "kernel.json")
    return results
