"""One model from its checkpoint to a checked answer over gRPC: quickstart, pipeline and `up`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bilateral_benchmarks.end_to_end.check_answers import streamed
from bilateral_benchmarks.load.ports import free_port
from bilateral_export.artifact import OnnxArtifact
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.family import Family
from bilateral_export.parity.compare import Candidate, Truth, judge, outputs_of, report_of, truth_of
from bilateral_export.parity.inputs.samples import DEFAULT_ITEMS, Sample
from bilateral_export.parity.report.document import ParityReport, ParityRow
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_serving import repository
from bilateral_serving.client.runner import TritonRunner
from bilateral_serving.config import Settings
from bilateral_serving.server import RunningServer, ServerOptions, running

BATCHES = (1, 2)
# Random inputs that parity is judged on. Where FP64 takes seconds for each, few must do.
ITEMS, ITEMS_LARGE = DEFAULT_ITEMS, 4
LARGE = 1_000_000  # parameters
TIMEOUT_S = 600.0
Say = Callable[[str], None]


@dataclass
class Steps:
    """The steps of a run: their wall time, and who is told of them.

    Attributes:
        on_step: Called with a step's name and what is being done, when it starts.
        on_result: Called with a step's name and a line of result, when it is done.
        seconds: Wall time of each step that is done.
    """

    on_step: Callable[[str, str], None]
    on_result: Callable[[str, str], None] = lambda step, line: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str, doing: str) -> Iterator[Say]:
        """Time a step; yield what takes its line of result."""
        self.on_step(name, doing)
        start = time.monotonic()
        lines: list[str] = []
        yield lines.append
        self.seconds[name] = round(time.monotonic() - start, 2)
        for line in lines:
            self.on_result(name, line)


@dataclass(frozen=True)
class ModelRun:
    """A model that is served; the server runs until the block of `run_model` ends.

    Attributes:
        server: The running server.
        export: The ONNX file.
        parity: Verdicts on ONNX Runtime and on the served model.
    """

    server: RunningServer
    export: OnnxArtifact
    parity: ParityReport


@contextlib.contextmanager
def run_model(
    name: str,
    load: Callable[[Say], Checkpoint],
    samples_of: Callable[[Checkpoint], Sequence[Sample]],
    check: Callable[[RunningServer, Checkpoint], None],
    *,
    folder: Path,
    models: Path,
    steps: Steps,
    build: Callable[[Path], None] = lambda exported: None,
) -> Iterator[ModelRun]:
    """Load, export, judge, deploy, serve, check and judge a model; yields it while it is served.

    Args:
        name: Under which the model is exported and served.
        load: Returns the checkpoint.
        samples_of: Returns the inputs that parity is judged on.
        check: Asks the served model, in steps of its own.
        folder: For the ONNX file.
        models: The model repository; version 1 of the model is made anew.
        steps: Told of each step.
        build: Does more with the ONNX file before the model is deployed, in steps of its own.

    Raises:
        UserError: A file, a package or a port is missing, or a step refuses the model.
    """
    exported = export_model(name, load, samples_of, folder=folder, steps=steps)
    build(exported.file.path)
    with steps("deploy", "Writing the model repository") as say:
        names = served_names(name, exported.checkpoint)
        for served, settings in names.items():
            say(str(_deploy(served, exported, models, settings)))
    options = ServerOptions(
        models, tuple(names), grpc_port=free_port(), http_port=None, metrics_port=None
    )
    with contextlib.ExitStack() as stack:
        with steps("serve", "Starting tritonserver") as say:
            server = stack.enter_context(running(options))
            say(f"tritonserver answers at {server.url}")
        check(server, exported.checkpoint)
        report = exported.report(judge_served(name, server, exported, steps))
        yield ModelRun(server, exported.file, report)


@dataclass(frozen=True)
class ExportedModel:
    """A checkpoint, its ONNX file, and the verdict of parity on the file.

    Attributes:
        checkpoint: The weights.
        file: The ONNX file.
        samples: The inputs that parity was judged on.
        truth: What FP64 PyTorch makes of them.
        rows: Verdicts on ONNX Runtime.
    """

    checkpoint: Checkpoint
    file: OnnxArtifact
    samples: Sequence[Sample]
    truth: Truth
    rows: Sequence[ParityRow]

    def report(self, rows: Sequence[ParityRow] = ()) -> ParityReport:
        """Return the verdict of parity, with what is known of the served model."""
        every = [*self.rows, *rows]
        return report_of(self.checkpoint, self.samples, every, judged=[self.file.sha256])


def export_model(
    name: str,
    load: Callable[[Say], Checkpoint],
    samples_of: Callable[[Checkpoint], Sequence[Sample]],
    *,
    folder: Path,
    steps: Steps,
) -> ExportedModel:
    """Load, export and judge a model; see `run_model`.

    Raises:
        UserError: A file is missing, or a step refuses the model.
    """
    with steps("load", "Loading the checkpoint") as say:
        checkpoint = load(say)
    with steps("export", "Exporting to ONNX") as say:
        file = export_onnx(checkpoint, folder / f"{name}.onnx")
        say(f"{file.path}, {file.attention_nodes} BilateralAttention nodes")
    with steps("parity", "Comparing ONNX Runtime with FP64 PyTorch") as say:
        samples = samples_of(checkpoint)
        candidate = Candidate(OnnxRuntimeRunner(file.path), "fp32")
        truth = truth_of(checkpoint, candidate.reference_spec, samples)
        rows = _judged(candidate, truth, samples, say)
    return ExportedModel(checkpoint, file, samples, truth, rows)


def served_names(name: str, checkpoint: Checkpoint) -> dict[str, Settings | None]:
    """Return the names a model is served under, with their settings: two for a language model."""
    names: dict[str, Settings | None] = {name: None}
    if checkpoint.card.model.generative:
        names[streamed(name)] = Settings(stream=True)
    return names


def judge_served(
    name: str, server: RunningServer, exported: ExportedModel, steps: Steps
) -> list[ParityRow]:
    """Return the verdicts on the served model, on the same inputs as those on the file.

    Raises:
        UserError: The server does not answer.
    """
    with steps("served parity", "Comparing the served model with FP64 PyTorch") as say:
        candidate = Candidate(TritonRunner(name, server.url, timeout_s=TIMEOUT_S), "fp32")
        return _judged(candidate, exported.truth, exported.samples, say)


def items_for(model: Family) -> int:
    """Return how many random inputs of each size parity is judged on."""
    large = sum(parameter.numel() for parameter in model.parameters()) > LARGE
    return ITEMS_LARGE if large else ITEMS


def _judged(
    candidate: Candidate, truth: Truth, samples: Sequence[Sample], say: Say
) -> list[ParityRow]:
    """Return the verdicts on a runner, and say each."""
    with candidate.runner as runner:
        rows = judge(candidate, outputs_of(runner, samples), truth, samples)
    for row in rows:
        verdict = "pass" if row.passed else "FAIL"
        say(f"{row.stage}: error {row.error:.1e}, budget {row.budget:.1e}: {verdict}")
    return rows


def _deploy(name: str, exported: ExportedModel, models: Path, settings: Settings | None) -> Path:
    """Make version 1 anew and return its directory; a configuration that is there stays."""
    if (models / name / "1").exists():
        repository.remove(name, models, version=1)
    report = exported.report()
    entry = repository.add(
        name,
        exported.file.path,
        models,
        version=1,
        settings=settings,
        parity=report if report.passed else None,
    )
    return entry.versions[0].directory
