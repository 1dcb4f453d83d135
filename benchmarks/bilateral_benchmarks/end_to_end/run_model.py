"""One model's way from its checkpoint to an answer over gRPC, in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.end_to_end.check_answers import Answer, ask, streamed
from bilateral_benchmarks.experiments.contenders import checkpoint_of
from bilateral_benchmarks.experiments.isolated import status_mib
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.report.machine import git_revision
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.plan.manifest import AttentionPath
from bilateral_export.errors import UserError
from bilateral_export.files import to_json
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.language import LanguageModelConfig
from bilateral_export.models.registry import MODELS, build
from bilateral_export.models.sequence import SequenceClassifierConfig
from bilateral_export.parity.compare import (
    Candidate,
    judge,
    outputs_of,
    report_of,
    truth_of,
)
from bilateral_export.parity.inputs.samples import DEFAULT_ITEMS, Sample, random_samples
from bilateral_export.parity.report.document import ParityReport
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.text import END, UNKNOWN, Tokenizer
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.client.runner import TritonRunner
from bilateral_serving.config import Settings
from bilateral_serving.server import RunningServer, ServerOptions, running

BATCHES = (1, 2)
# Random inputs that parity is judged on. Where FP64 takes seconds for each, few must do.
ITEMS, ITEMS_LARGE = DEFAULT_ITEMS, 4
LARGE = 1_000_000  # parameters
# What TensorRT for RTX builds for; a full TensorRT builds for the GPU it runs on.
TARGETS = (86, 120)
TIMEOUT_S = 600.0


class Plan(BaseModel):
    """A TensorRT plan; where it was built for, which attention it has, how many of it are fused."""

    model_config = ConfigDict(frozen=True)

    library: str
    targets: tuple[str, ...]
    mb: float
    seconds: float
    attention: AttentionPath
    fused: int | None


class Journey(BaseModel):
    """What came of one model.

    Attributes:
        name: The model's name.
        weights: "trained" where a checkpoint is committed, else "random".
        parameters: How many it has.
        plain_parameters: How many its plain twin has; None where it has none.
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


def travel(name: str, checkpoints: Path, folder: Path) -> Journey:
    """Take a model all the way.

    Args:
        name: One of `bilateral models`.
        checkpoints: Directory of the committed checkpoints and held-out inputs.
        folder: For everything that is made.

    Raises:
        UserError: A file or a package is missing, or a step refuses the model.
    """
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(what: str) -> Iterator[None]:
        print(f"{name}: {what}", file=sys.stderr, flush=True)
        start = time.monotonic()
        yield
        seconds[what] = round(time.monotonic() - start, 2)

    with step("load"):
        trained = (checkpoints / f"{name}.safetensors").is_file()
        checkpoint = checkpoint_for(name, checkpoints, folder)
    with step("export"):
        exported = export_onnx(checkpoint, folder / f"{name}.onnx")
    with step("parity"):
        samples = _samples(checkpoint, _parameters(name))
        local = Candidate(OnnxRuntimeRunner(exported.path), "fp32")
        truth = truth_of(checkpoint, local.ground, samples)
        with local.runner as runner:
            rows = judge(local, outputs_of(runner, samples), truth, samples)
    with step("build"):
        plan = _build(exported.path, folder / f"{name}.plan")
    with step("deploy"):
        models = folder / "models"
        repository.add(name, exported.path, models)
        if isinstance(checkpoint.card.model, LanguageModelConfig):
            repository.add(streamed(name), exported.path, models, settings=Settings(stream=True))
    with contextlib.ExitStack() as stack:
        with step("serve"):
            options = ServerOptions(
                models, grpc_port=free_port(), http_port=None, metrics_port=None
            )
            server = stack.enter_context(running(options))
        with step("ask"), Client(server.url, timeout_s=TIMEOUT_S) as client:
            answers = ask(client, name, checkpoint, checkpoints)
        with step("served parity"):
            served = Candidate(TritonRunner(name, server.url, timeout_s=TIMEOUT_S), "fp32")
            with served.runner as runner:
                rows += judge(served, outputs_of(runner, samples), truth, samples)
        server_mib = _peak_of(server)
    return Journey(
        name=name,
        weights="trained" if trained else "random",
        parameters=_parameters(name),
        plain_parameters=_parameters(_twin(name)) if _twin(name) in MODELS else None,
        onnx_mb=exported.bytes / 1e6,
        attention_nodes=exported.attention_nodes,
        parity=report_of(checkpoint, samples, rows),
        plan=plan,
        answers=answers,
        peak_mib=status_mib("VmHWM"),
        server_mib=server_mib,
        seconds=seconds,
        revision=git_revision(),
    )


def checkpoint_for(name: str, checkpoints: Path, folder: Path) -> Checkpoint:
    """The committed checkpoint of a model, or one with random weights and what it is served with.

    A language model's words, which are not known without its checkpoint, are those of the committed
    one, and numbers up to the size of the vocabulary.
    """
    trained = checkpoints / f"{name}.safetensors"
    if trained.is_file():
        return load_checkpoint(trained)
    checkpoint = checkpoint_of(name, folder)
    config = checkpoint.card.model
    if not isinstance(config, LanguageModelConfig):
        return checkpoint
    known = load_checkpoint(checkpoints / "pydoc_bilateral.safetensors").card.preprocessing
    assert isinstance(known, TextPreprocessing)
    words = dict.fromkeys((END, UNKNOWN, *known.vocabulary))
    words |= dict.fromkeys(f"word{number}" for number in range(config.vocabulary))
    tokenizer = Tokenizer(list(words)[: config.vocabulary])
    preprocessing = TextPreprocessing(
        vocabulary=tokenizer.words, vocabulary_sha256=tokenizer.sha256, context=config.context
    )
    card = checkpoint.card.model_copy(update={"preprocessing": preprocessing})
    return dataclasses.replace(checkpoint, card=card)


def _samples(checkpoint: Checkpoint, parameters: int) -> list[Sample]:
    """Random inputs; documents as long as the model allows, and an eighth of it."""
    config = checkpoint.card.model
    lengths = {}
    if isinstance(config, SequenceClassifierConfig) and config.grid is None:
        lengths = {"length": (config.length, config.length // 8)}
    items = ITEMS_LARGE if parameters > LARGE else ITEMS
    return random_samples(checkpoint.build_model(), BATCHES, lengths, items)


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


def _twin(name: str) -> str:
    return "digits_plain" if name == "digits_bilateral" else name.replace("_bilateral", "")


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(MODELS[name]).parameters())


def _peak_of(server: RunningServer) -> float:
    """Peak resident memory of a server's processes together, MiB."""
    family = [server.pid]
    for pid in family:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            family += map(int, children.read_text().split())
    return sum(status_mib("VmHWM", pid) for pid in family)


def main() -> None:
    """Take a model's name, the directory of checkpoints and the file for the journey as JSON.

    Everything else that is made lies beside that file, for the caller to delete.
    """
    name, checkpoints, result = sys.argv[1:]
    try:
        journey = travel(name, Path(checkpoints), Path(result).parent)
    except UserError as error:
        sys.exit(str(error))
    Path(result).write_text(to_json(journey), encoding="utf-8")


if __name__ == "__main__":
    main()
