"""Pipeline stages between training and serving, and which of them this machine can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.decision_loss import StatedLoss
from bilateral_export.metadata import Precision
from bilateral_export.parity.bisection.widen import widen_file
from bilateral_export.parity.bisection.windows import OpenRunner
from bilateral_export.parity.compare import Candidate
from bilateral_export.parity.report.document import Skipped
from bilateral_export.parity.scores import expose_scores, with_scores
from bilateral_export.precision import DTYPES
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.registry import RUNTIMES
from bilateral_export.runners.torch_compiled import CompiledRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.runners.torch_exported import ExportedRunner

WIDENED = "onnxruntime CPU, graph widened to float32"


@dataclass(frozen=True)
class Stage:
    """One stage of the matrix.

    Attributes:
        candidate: What runs, and what it is compared with.
        checked: Whether behaviour and extremes are checked too: for what serves, not for what
            merely leads there.
        required: Whether it was asked for by name: it is then an error when it cannot run.
        graph: The ONNX file that is searched when the stage fails; None where there is none.
        open_runner: How the stage's runtime opens a part of that file.
    """

    candidate: Candidate
    checked: bool = False
    required: bool = False
    graph: Path | None = None
    open_runner: OpenRunner | None = None


def stages(
    checkpoint: Checkpoint,
    onnx: Path,
    precision: Precision,
    scratch: Path,
    *,
    compiled: bool = True,
    stated: StatedLoss | None = None,
) -> tuple[list[Stage], list[Skipped]]:
    """Return what can run here between eager PyTorch and the runtimes that read the file.

    Args:
        checkpoint: The trained weights.
        onnx: The exported file.
        precision: It was exported in.
        scratch: Directory for the widened graph, and for that whose scores are shown.
        compiled: Whether to compile with TorchInductor, which takes a while.
        stated: The loss of decisions that the file states, if it does.

    Returns:
        The stages in the order of the pipeline, and those left out with the reason.
    """
    scored = with_scores(checkpoint)
    made = [
        Stage(Candidate(TorchRunner(scored, DTYPES[each]), each, stage=f"torch eager {each}"))
        for each in DTYPES
    ]
    skipped = []
    dtype = DTYPES[precision]
    if compiled:
        made.append(Stage(Candidate(CompiledRunner(scored, dtype), precision)))
    else:
        skipped.append(Skipped(stage="torch.compile", reason="it takes a minute: give --compile"))
    made.append(Stage(Candidate(ExportedRunner(scored, dtype), precision)))
    if precision != "fp32":
        wide = scratch / f"widened-{onnx.name}"
        widen_file(onnx, wide)
        runner = OnnxRuntimeRunner(expose_scores(wide, scored, scratch / f"scores-{wide.name}"))
        candidate = Candidate(runner, precision, widened=True, stage=WIDENED)
        made.append(Stage(candidate, graph=wide, open_runner=OnnxRuntimeRunner))
    shown = expose_scores(onnx, scored, scratch / f"scores-{onnx.name}")
    for runtime in RUNTIMES.values():
        if runtime.reads != "onnx":
            continue
        if reason := runtime.missing():
            skipped.append(Skipped(stage=runtime.name, reason=reason))
            continue
        reader = runtime.load(shown)
        kind = precision if stated is None else "int8"
        candidate = Candidate(reader, precision, stage=f"{reader.name}, {kind} file", stated=stated)
        checked = not runtime.diagnostic
        made.append(Stage(candidate, checked, graph=onnx, open_runner=runtime.load))
    return made, skipped
