"""The report on one model of the pipeline, made in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.end_to_end.check_answers import Answer, check_answers
from bilateral_benchmarks.end_to_end.run_model import (
    BATCHES,
    TIMEOUT_S,
    Say,
    Steps,
    items_for,
    run_model,
)
from bilateral_benchmarks.experiments.contenders import checkpoint_for
from bilateral_benchmarks.experiments.isolated import status_mib
from bilateral_benchmarks.report.files import write_json
from bilateral_benchmarks.report.machine import git_revision
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.plan.manifest import AttentionPath
from bilateral_export.errors import UserError
from bilateral_export.models.registry import MODELS, build
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.parity.report.document import ParityReport
from bilateral_serving.client import Client
from bilateral_serving.server import RunningServer

# What TensorRT for RTX builds for; a full TensorRT builds for the GPU it runs on.
TARGETS = (86, 120)


class Plan(BaseModel):
    """A TensorRT plan; where it was built for, which attention it has, how many of it are fused."""

    model_config = ConfigDict(frozen=True)

    library: str
    targets: tuple[str, ...]
    mb: float
    seconds: float
    attention: AttentionPath
    fused: int | None


class ModelReport(BaseModel):
    """What came of one model.

    Attributes:
        name: The model's name.
        weights: "trained" where a checkpoint is committed, else "random".
        parameters: How many it has.
        plain_parameters: How many its plain-attention counterpart has; None where it has none.
        onnx_mb: Size of the exported file.
        attention_nodes: BilateralAttention nodes in it.
        parity: Verdicts in float32 of ONNX Runtime and of the served model, on random inputs.
        plan: The TensorRT plan.
        answers: What the served model said to real inputs, against PyTorch.
        peak_mib: Peak of this process's resident memory; the FP64 reference needs most of it.
        server_mib: The same of the server and of the processes that run the model for it.
        seconds: Wall time of each step.
        revision: Of the source tree.
        first_failure: Why an earlier try failed; None where this was the first.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    weights: Literal["trained", "random"]
    parameters: int
    plain_parameters: int | None
    onnx_mb: float
    attention_nodes: int
    parity: ParityReport
    plan: Plan
    answers: tuple[Answer, ...]
    peak_mib: float
    server_mib: float
    seconds: dict[str, float]
    revision: str | None
    first_failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether what is served computes what the checkpoint holds."""
        return self.parity.passed and all(answer.agrees for answer in self.answers)


def report_on(name: str, checkpoints: Path, folder: Path) -> ModelReport:
    """Run a model from checkpoint to served answer and return what came of it.

    Args:
        name: One of `bilateral models`.
        checkpoints: Directory of the committed checkpoints and held-out inputs.
        folder: For everything that is made.

    Raises:
        UserError: A file or a package is missing, or a step refuses the model.
    """
    steps = Steps(lambda step, _: print(f"{name}: {step}", file=sys.stderr, flush=True))
    parameters = _parameters(name)
    plans: list[Plan] = []
    answers: list[Answer] = []

    def load(_: Say) -> Checkpoint:
        return checkpoint_for(name, checkpoints, folder)

    def build_it(exported: Path) -> None:
        with steps("build", "Building a TensorRT plan"):
            plans.append(_build(exported, folder / f"{name}.plan"))

    def check(server: RunningServer, checkpoint: Checkpoint) -> None:
        with (
            steps("ask", "Asking the served model"),
            Client(server.url, timeout_s=TIMEOUT_S) as client,
        ):
            answers.extend(check_answers(client, name, checkpoint, checkpoints))

    models = folder / "models"
    with run_model(
        name, load, _samples, check, folder=folder, models=models, steps=steps, build=build_it
    ) as run:
        server_mib = _peak_of(run.server)
    counterpart = _counterpart(name)
    return ModelReport(
        name=name,
        weights="trained" if (checkpoints / f"{name}.safetensors").is_file() else "random",
        parameters=parameters,
        plain_parameters=_parameters(counterpart) if counterpart in MODELS else None,
        onnx_mb=run.export.bytes / 1e6,
        attention_nodes=run.export.attention_nodes,
        parity=run.parity,
        plan=plans[0],
        answers=tuple(answers),
        peak_mib=status_mib("VmHWM"),
        server_mib=server_mib,
        seconds=steps.seconds,
        revision=git_revision(),
    )


def _samples(checkpoint: Checkpoint) -> list[Sample]:
    """Return random inputs; documents as long as the model allows, and an eighth of it."""
    model = checkpoint.build_model()
    lengths = {}
    if model.config.pads:
        longest = model.corners()[0]["length"]
        lengths = {"length": (longest, longest // 8)}
    return random_samples(model, BATCHES, lengths, items_for(model))


def _build(exported: Path, target: Path) -> Plan:
    library = load_library()
    options = BuildOptions(targets=TARGETS if library.ahead_of_time else (), max_batch=8)
    manifest = build_plan(exported, target, options, library=library)
    target.unlink()  # 350 MB of them would otherwise lie beside each other
    return Plan(
        library=f"{manifest.library} {manifest.version}",
        targets=manifest.targets,
        mb=manifest.plan.bytes / 1e6,
        seconds=manifest.seconds,
        attention=manifest.attention.path,
        fused=manifest.attention.fused,
    )


def _counterpart(name: str) -> str:
    return "digits_plain" if name == "digits_bilateral" else name.replace("_bilateral", "")


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(MODELS[name]).parameters())


def _peak_of(server: RunningServer) -> float:
    """Return the peak resident memory of a server's processes together, MiB."""
    family = [server.pid]
    for pid in family:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            family += map(int, children.read_text().split())
    return sum(status_mib("VmHWM", pid) for pid in family)


def main() -> None:
    """Take a model's name, the directory of checkpoints and the file for the report as JSON.

    Everything else that is made lies beside that file, for the caller to delete.
    """
    name, checkpoints, result = sys.argv[1:]
    try:
        report = report_on(name, Path(checkpoints), Path(result).parent)
    except UserError as error:
        sys.exit(str(error))
    write_json(report, Path(result))


if __name__ == "__main__":
    main()
