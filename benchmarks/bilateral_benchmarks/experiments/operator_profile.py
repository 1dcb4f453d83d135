"""Operator profile of a lowered model on ONNX Runtime, against the GEMM peak.

The times are those of ONNX Runtime's own profiler, operator by operator, so that a share below the
GEMM peak is explained: products that are slower than a square one, and work that is not a product.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.gemm_peak import fastest, qualify
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Bar, Plot, bar_plot
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_benchmarks.statistics.interleave import interleave
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.subnormals import subnormals_flushed

_LINEAR, _ATTENTION, _NORMS = "linear layers", "attention", "norms"
_BIAS, _ELEMENTWISE, _MOVES = "biases, GELU", "residual sums", "splits, transposes, copies"
_RUNS = 30
_FACTORS = {"MatMul", "FusedMatMul", "Gemm", "Conv"}
_OF_STAGE = {
    "LayerNormalization": _NORMS,
    "SkipLayerNormalization": _NORMS,
    "MultiHeadAttention": _ATTENTION,
    "Softmax": _ATTENTION,
    "ReduceSumSquare": _ATTENTION,
    "Gelu": _BIAS,
    "BiasGelu": _BIAS,
    "Split": _MOVES,
    "Transpose": _MOVES,
    "Reshape": _MOVES,
    "Concat": _MOVES,
    "Gather": _MOVES,
    "Expand": _MOVES,
}


class Stage(BaseModel):
    """Operators of one kind.

    Attributes:
        name: What they do.
        ms: Their median times in one call, added up.
        gflop: Operations of their matrix products; 0 for what is none or counts none.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    ms: float
    gflop: float


class OperatorProfile(Result):
    """All stages of one model.

    Attributes:
        whole_ms: Median of a call without the profiler, interleaved with the products.
        gemm_gflops: The GEMM peak in the same rounds.
    """

    kind: Literal["stages"] = "stages"
    subject: str
    whole_ms: float
    gemm_gflops: float
    stages: tuple[Stage, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return the time by kind of operator, and what of it the GEMM peak explains."""
        peak = self.gemm_gflops
        total = sum(stage.ms for stage in self.stages)
        rows = [
            (
                stage.name,
                number(stage.ms),
                f"{stage.ms / total:.0%}",
                number(stage.gflop) if stage.gflop else "",
                f"{1e3 * stage.gflop / stage.ms / peak:.0%}" if stage.gflop else "",
                number(1e3 * stage.gflop / peak) if stage.gflop else "0",
            )
            for stage in self.stages
        ]
        work = sum(stage.gflop for stage in self.stages)
        rows.append(
            ("all operators", number(total), "100%", number(work), "", number(1e3 * work / peak))
        )
        columns = ("", ">ms", ">share", ">GFLOP", ">of the GEMM peak", ">ms at the peak")
        notes = (
            f"A call takes {number(self.whole_ms)} ms without the profiler, which adds a little to"
            f" every operator; the GEMM peak is {peak:.0f} GFLOP/s in the same rounds.",
        )
        return [Table(f"Operators on ONNX Runtime: {self.subject}", columns, tuple(rows), notes)]

    def plots(self) -> list[Plot]:
        """Return the time by kind of operator."""
        bars = [Bar(stage.name, [stage.ms]) for stage in self.stages]
        return [Plot("Time by kind of operator", bar_plot(bars, [], "ms"))]


def profile_operators(
    subject: str, lowered: Path, *, rounds: int = 9, on_step: Callable[[str], None] | None = None
) -> OperatorProfile:
    """Profile a lowered file.

    Args:
        subject: What it is.
        lowered: The file.
        rounds: Of the model and of the products that set the GEMM peak, interleaved.
        on_step: Called with what is being done.
    """
    if on_step:
        on_step(f"stages of {subject}")
    context = Context.now()
    products = qualify()
    with OnnxRuntimeRunner(lowered) as runner:
        arrays = made_up(runner.inputs)
        runner.run(arrays)
        calls: dict[str, Callable[[], object]] = {p.name: p.call for p in products}
        calls["model"] = lambda: runner.run(arrays)
        blocks = interleave(calls, rounds)
    times: dict[str, float] = defaultdict(float)
    work: dict[str, float] = defaultdict(float)
    for stage, seconds, flops in _profile(lowered, arrays):
        times[stage] += seconds
        work[stage] += flops
    stages = [Stage(name=n, ms=1e3 * times[n], gflop=work[n] / 1e9) for n in times]
    return OperatorProfile(
        subject=subject,
        whole_ms=1e3 * blocks.seconds("model"),
        gemm_gflops=fastest(products, blocks).rate(blocks).gflops,
        stages=tuple(sorted(stages, key=lambda stage: -stage.ms)),
        context=context,
    )


def _profile(path: Path, arrays: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Return the stage, median seconds and operations of every operator of a call."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    with tempfile.TemporaryDirectory() as scratch, subnormals_flushed(True):  # as the runner does
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, arrays)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_node[event["name"]].append(event)
    return [
        (
            _stage(found[0]["args"]),
            1e-6 * float(np.median([event["dur"] for event in found])),
            _flops(found[0]["args"]),
        )
        for found in by_node.values()
    ]


def _shapes(args: dict[str, Any], side: str) -> list[list[int]]:
    return [next(iter(entry.values())) for entry in args.get(f"{side}_type_shape", [])]


def _stage(args: dict[str, Any]) -> str:
    operator = args["op_name"]
    out = _shapes(args, "output")[0]
    if operator in _FACTORS:
        # Products of attention are by head.
        by_head = operator in ("MatMul", "FusedMatMul") and len(out) == 4
        return _ATTENTION if by_head else _LINEAR
    if operator in _OF_STAGE:
        return _OF_STAGE[operator]
    if len(out) == 4:
        return _ATTENTION  # sums on logits
    bias = any(len(shape) == 1 for shape in _shapes(args, "input"))
    return _BIAS if bias and operator in ("Add", "Sub") else _ELEMENTWISE


def _flops(args: dict[str, Any]) -> float:
    operator = args["op_name"]
    inputs, out = _shapes(args, "input"), _shapes(args, "output")[0]
    if operator in ("MatMul", "FusedMatMul"):
        return 2.0 * float(np.prod(out)) * inputs[0][-1]
    if operator == "Gemm":
        return 2.0 * float(np.prod(out)) * inputs[0][-1]
    if operator == "Conv":
        return 2.0 * float(np.prod(out)) * float(np.prod(inputs[1][1:]))
    if operator == "MultiHeadAttention":
        query, key, value = inputs[:3]
        return 2.0 * query[0] * query[1] * key[1] * (query[2] + value[2])
    return 0.0
