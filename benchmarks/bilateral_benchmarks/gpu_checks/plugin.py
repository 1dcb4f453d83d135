"""Check of the plugin library on a GPU, without TensorRT (`bilateral check plugin`).

Every case of a grid goes through the plugin's own interfaces (plugin_harness.py) on device memory
and is compared with the operator in float64; the limit is twice the error of PyTorch's own
attention on the same tokens. What the library has no kernel for is counted and no failure; whatever
else keeps a case from running is one. Then what a launch costs the host, through the plugin and
through PyTorch.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import PlainSerializer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bilateral_benchmarks.gpu_checks.plugin_harness import PluginCall, require_harness
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.files import write
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table
from bilateral_export.engine.installation.plugin import plugin_contents, require_plugin
from bilateral_export.errors import UserError
from bilateral_export.op import contract
from bilateral_export.op.attention import attention
from bilateral_export.op.contract import RangeKernel, SpatialKernel
from bilateral_export.op.operands import Operands

Dtype = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
# JSON has neither NaN nor infinity, which a wrong answer may be.
Error = Annotated[float, PlainSerializer(lambda error: error if math.isfinite(error) else None)]
# Position features are rounded to the tokens' type, and their products are as large as q.k.
FEATURES_LIMIT = 3.0
TIMED_CALLS = 200
SHOWN = 20  # failures by name; the rest is a number here, and all of them in the JSON file
# How the plugin says that it was built without a kernel for a node (plugin/src/schedule.cpp).
NO_KERNEL = "no kernel for"


@dataclass(frozen=True)
class Case:
    """One node and its sizes; `width` is C of the Gaussian spatial kernel or P of features."""

    dtype: Dtype
    range_kernel: RangeKernel = "dot"
    spatial_kernel: SpatialKernel = "none"
    width: int = 0
    head_dim: int = 64
    n_query: int = 64
    n_key: int = 64
    batch: int = 2
    heads: int = 3
    prefix: int = 0
    causal: bool = False
    key_bias: bool = False
    bandwidth: float = 2.0


@dataclass(frozen=True)
class CaseResult:
    """What came out of a case: its relative error and what it may be, or why it did not run.

    `refused` is the reason of a library without a kernel for it, `failed` every other one.
    """

    case: Case
    error: Error | None
    limit: float = 0.0
    refused: str = ""
    failed: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran, and is as exact as it has to be."""
        return not self.failed and self.error is not None and self.error <= self.limit


class PluginCheck(Result):
    """The whole grid on one device, and what a launch costs the host."""

    page_title: ClassVar[str] = "The plugin on a GPU, without TensorRT"

    kind: Literal["plugin-check"] = "plugin-check"
    device: str
    overhead_us: dict[str, float]
    results: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Whether cases ran, and every one that the library has a kernel for passed."""
        judged = [result for result in self.results if not result.refused]
        return bool(judged) and all(result.passed for result in judged)

    def facts(self) -> list[str]:
        """Return the device, and what is known of the run."""
        return [f"device: {self.device}", *super().facts()]

    def tables(self) -> list[Table]:
        """Return a row per type and kernels, with the first failures, and the launch overhead."""
        rows: list[tuple[str, ...]] = []
        groups: dict[tuple[str, str, str], list[CaseResult]] = {}
        for result in self.results:
            case = result.case
            name = f"{case.spatial_kernel}{case.width or ''}"
            groups.setdefault((case.dtype, case.range_kernel, name), []).append(result)
        for names, group in groups.items():
            ran = [(result.error, result.limit) for result in group if result.error is not None]
            if not ran:
                rows.append((*names, "0", "", "", "", f"{len(group)}"))
                continue
            error, limit = max(ran, key=lambda pair: pair[0] / pair[1])
            share = f"{error / limit:.2f}"
            left = f"{len(group) - len(ran)}"
            rows.append((*names, f"{len(ran)}", f"{error:.1e}", f"{limit:.1e}", share, left))
        columns = ("T", "range", "spatial", ">cases", ">worst error", ">its limit")
        more = (">share of limit", ">not run")
        overhead = tuple((way, f"{cost:.1f}") for way, cost in self.overhead_us.items())
        return [
            Table("Results against float64", (*columns, *more), tuple(rows), tuple(self._notes())),
            Table("Cost of a launch", ("way", ">us of the host"), overhead),
        ]

    def _notes(self) -> Iterator[str]:
        """Yield a line for each of the first failures, and for each reason of a refusal."""
        failures = [result for result in self.results if not (result.passed or result.refused)]
        for result in failures[:SHOWN]:
            wrong = f"error {result.error}, allowed {result.limit:.2e}"
            yield f"FAIL {result.case}: {result.failed or wrong}"
        if len(failures) > SHOWN:
            yield f"FAIL {len(failures) - SHOWN} more"
        refused = Counter(result.refused for result in self.results if result.refused)
        for reason, count in sorted(refused.items()):
            yield f"{count} cases not run: {reason}"


# Small, so that its launch is most of its time.
OVERHEAD = Case("fp16", "gaussian", "gaussian", 2, n_query=197, n_key=197, batch=1, heads=6)


def cases() -> Iterator[Case]:
    """Yield the whole grid: kernels, options, types, head sizes, ragged lengths, skipped tiles."""
    kernels: tuple[tuple[SpatialKernel, int], ...] = (
        ("none", 0), ("gaussian", 1), ("gaussian", 2), ("dot", 16), ("dot", 64),
    )  # fmt: skip
    options: tuple[dict[str, Any], ...] = (
        {}, {"prefix": 1}, {"causal": True}, {"prefix": 2, "key_bias": True},
    )  # fmt: skip
    lengths = ((1, 1), (64, 64), (197, 197), (70, 129), (129, 70), (256, 256))
    for dtype, range_kernel, (spatial_kernel, width), option, head_dim, (n_query, n_key) in product(
        DTYPES, contract.RANGE_KERNELS, kernels, options, (16, 32, 64, 72, 128), lengths
    ):
        prefixed = option.get("prefix", 0)
        if prefixed <= min(n_query, n_key):
            case = Case(dtype, range_kernel, spatial_kernel, width, head_dim, n_query, n_key)
            yield replace(case, **option)
    for dtype, range_kernel, causal, prefix in product(
        DTYPES, contract.RANGE_KERNELS, (False, True), (0, 1)
    ):
        long = Case(dtype, range_kernel, "gaussian", 2, n_query=4190, n_key=4190, batch=1, heads=2)
        yield replace(long, causal=causal, prefix=prefix)


def operands_of(case: Case, device: str, seed: int = 0) -> Operands:
    """Return standard normal tokens; positions row by row in a square; features of length one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def places(n: int) -> Tensor:
        if case.spatial_kernel == "dot":
            return normal(case.heads, n, case.width) / math.sqrt(math.sqrt(case.width))
        index = torch.arange(n, dtype=torch.float32)
        side = max(1, round(n**0.5))
        return torch.stack((index,) if case.width == 1 else (index // side, index % side), 1)

    query, key, value = (
        normal(case.batch, case.heads, n, case.head_dim).to(DTYPES[case.dtype])
        for n in (case.n_query, case.n_key, case.n_key)
    )
    spatial = case.spatial_kernel != "none"
    bias = normal(case.batch, case.n_key)
    bias[:, -1] = -torch.inf
    given = Operands(
        query,
        key,
        value,
        query_positions=places(case.n_query) if spatial else None,
        key_positions=places(case.n_key) if spatial else None,
        bandwidth=case.bandwidth * torch.linspace(0.5, 2, case.heads)
        if case.spatial_kernel == "gaussian"
        else None,
        key_bias=bias if case.key_bias and case.n_key > 1 else None,
        scale=case.head_dim**-0.5,
        range_kernel=case.range_kernel,
        spatial_kernel=case.spatial_kernel,
        query_prefix=case.prefix,
        key_prefix=case.prefix,
        causal=case.causal,
    )
    return given.map(lambda tensor: tensor.to(device))


def judge(case: Case, operands: Operands, output: Tensor) -> CaseResult:
    """Compare an output with the operator in float64."""
    exact = attention(**vars(operands.map(Tensor.double)))
    # The operator's own answer where a query sees no key (causal, more queries than keys): zeros.
    exact = exact.nan_to_num(0.0)
    tokens = operands.query, operands.key, operands.value
    plain = attention(*(tensor.double() for tensor in tokens), scale=operands.scale)
    theirs = scaled_dot_product_attention(*tokens, scale=operands.scale)
    limit = 2 * relative_error(theirs, plain)
    if case.spatial_kernel == "dot" and case.dtype != "fp32":
        limit *= FEATURES_LIMIT
    # One key alone: both copy a value.
    limit = max(limit, torch.finfo(DTYPES[case.dtype]).eps / 4)
    return CaseResult(case, relative_error(output, exact), limit)


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Return the Frobenius norm of the difference over that of the answer."""
    return float((got.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def check(plugin: Path, case: Case, device: str = "cuda") -> CaseResult:
    """Run one case on the GPU, twice: the second time has to give the same bits."""
    try:
        operands = operands_of(case, device)
        with PluginCall(plugin, operands) as call:
            first = call().clone()
            result = judge(case, operands, first)
            if not torch.equal(first, call()):
                return replace(result, failed="two calls gave different bits")
            return result
    except (UserError, RuntimeError) as error:
        reason = str(error)
        if NO_KERNEL in reason:
            return CaseResult(case, None, refused=reason)
        return CaseResult(case, None, failed=reason)


def check_all(plugin: Path) -> Iterator[CaseResult]:
    """Run the grid; what leaves the GPU in error ends it, for nothing runs there any more."""
    for case in cases():
        result = check(plugin, case)
        yield result
        if result.failed and not _gpu_works():
            return


def _gpu_works() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def launch_overhead(plugin: Path) -> dict[str, float]:
    """Return the host's microseconds for one call on small tensors, without the GPU's time."""
    from bilateral_export.op.torch_op import bilateral_attention

    operands = operands_of(OVERHEAD, "cuda")
    with PluginCall(plugin, operands) as call:
        call.enqueue(TIMED_CALLS)
        torch.cuda.synchronize()
        enqueue = call.enqueue(TIMED_CALLS)
        torch.cuda.synchronize()
        return {
            "plugin enqueue": 1e6 * enqueue,
            "plugin enqueue, called from Python": _host_microseconds(call),
            "PyTorch operator": _host_microseconds(
                lambda: bilateral_attention(*operands.arguments)
            ),
        }


def _host_microseconds(run: Callable[[], object]) -> float:
    """Return the median of ten batches of calls; the GPU is idle when a batch begins."""
    for _ in range(10):
        run()
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(TIMED_CALLS // 10):
            run()
        times.append(1e6 * (time.perf_counter() - begin) / (TIMED_CALLS // 10))
    return statistics.median(times)


def check_plugin(path: Path | None, output: Path | None, say: Callable[[str], None]) -> PluginCheck:
    """Run the grid, measure what a launch costs, and return both.

    Args:
        path: The library; None: the installation's.
        output: Directory for plugin_check.json, .md and .html; None: nothing is written.
        say: Called with what is checked.

    Raises:
        UserError: There is no NVIDIA GPU, or no library with code for it.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "this check needs an NVIDIA GPU, and PyTorch sees none",
            "Build the plugin (make plugin) and run it on a machine with one.",
        )
    plugin = require_plugin(path)
    require_harness(plugin)
    contents = plugin_contents(plugin)
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor not in contents.targets:
        raise UserError(
            f"{plugin} has no code for {name} (sm_{major}{minor}), only for {contents.targets}",
            f"From sm_80 on: make plugin PLUGIN_SM={major}{minor}.",
        )
    say(f"{name}, kernels for {contents.targets}")
    results = tuple(check_all(plugin))
    runs = {result.case.dtype for result in results if result.passed}
    healthy = not any(result.failed for result in results)
    overhead = launch_overhead(plugin) if healthy and OVERHEAD.dtype in runs else {}
    found = PluginCheck(context=Context.now(), device=name, overhead_us=overhead, results=results)
    if output:
        write(found, output / "plugin_check.json")
    return found
