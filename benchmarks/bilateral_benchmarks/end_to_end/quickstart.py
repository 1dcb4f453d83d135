"""The main job from end to end: a trained checkpoint becomes a verified gRPC service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.report.machine import Machine
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.files import require_file, to_json, write_text
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import ImagePreprocessing
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.parity.report.document import ParityReport
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array
from bilateral_serving import repository as repositories
from bilateral_serving.client import Client
from bilateral_serving.client.inputs.images import preprocess
from bilateral_serving.client.runner import TritonRunner
from bilateral_serving.server import ServerOptions, running

MODEL = "digits"
STEPS = 9


class Summary(BaseModel):
    """What `bilateral quickstart` found; written as JSON.

    Attributes:
        images: Held-out images classified.
        torch_accuracy: Share that eager PyTorch classifies right.
        served_accuracy: Share that the served model classifies right.
        same_decisions: Whether both gave the same class to every image.
        p50_ms: Response times over gRPC of single images, one caller, milliseconds. Percentiles
            that the number of requests cannot support are None.
        p95_ms: The same.
        p99_ms: The same.
        throughput: Images per second, one caller.
        failed_requests: While the latency was measured; wrong answers count.
        parity: Verdicts of ONNX Runtime and of the served model against FP64 PyTorch.
        seconds: Wall time of each step.
        machine: Where this ran.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    torch_accuracy: float
    served_accuracy: float
    same_decisions: bool
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    throughput: float
    failed_requests: int
    parity: ParityReport
    seconds: dict[str, float]
    machine: Machine

    @property
    def passed(self) -> bool:
        """Whether what is served computes what was trained."""
        return self.parity.passed and self.same_decisions and not self.failed_requests


OnStep = Callable[[str], None]
"""Called with what is being done, when a step starts."""
OnResult = Callable[[str, str], None]
"""Called with a step's name and one line of result, when it is done."""


def quickstart(
    checkpoints: Path,
    repository: Path,
    out: Path,
    on_step: OnStep,
    on_result: OnResult,
    duration_s: float = 6.0,
) -> Summary:
    """Load, export, check, deploy, serve, ask and time the committed digits model.

    Args:
        checkpoints: Directory of the committed checkpoints and the held-out images.
        repository: The model repository; version 1 of its model "digits" is made anew.
        out: Directory for the ONNX file and `quickstart.json`.
        on_step: See `OnStep`.
        on_result: See `OnResult`.
        duration_s: Seconds of the latency measurement.

    Raises:
        UserError: A file, a package or a port is missing; the message says which.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, doing: str) -> Iterator[None]:
        on_step(doing)
        start = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - start, 2)

    with step("load", "Loading the checkpoint"):
        checkpoint = load_checkpoint(checkpoints / "digits_bilateral.safetensors")
        images, labels = heldout_images(checkpoints / "digits_heldout.npz", checkpoint)
        torch_classes = _torch_classes(checkpoint, images)
        torch_accuracy = _accuracy(torch_classes, labels)
    on_result("load", f"{checkpoint.card.name}, torch accuracy {torch_accuracy:.4f}")

    with step("export", "Exporting to ONNX"):
        exported = export_onnx(checkpoint, out / f"{MODEL}.onnx")
    on_result("export", f"{exported.path}, {exported.attention_nodes} BilateralAttention nodes")

    with step("parity", "Comparing ONNX Runtime with FP64 PyTorch"):
        drawn = random_samples(checkpoint.build_model())
        samples = [*drawn, Sample("held out", {"image": images[:8]})]
        in_process = compare(
            checkpoint, [Candidate(OnnxRuntimeRunner(exported.path), "fp32")], samples
        )
    on_result("parity", _verdict(in_process))

    with step("deploy", "Writing the model repository"):
        directory = _deploy(exported.path, repository)
    on_result("deploy", str(directory))

    with ExitStack() as stack:
        with step("serve", "Starting tritonserver"):
            options = ServerOptions(
                repository, (MODEL,), grpc_port=free_port(), http_port=None, metrics_port=None
            )
            server = stack.enter_context(running(options))
        on_result("serve", f"tritonserver answers at {server.url}")

        with step("classify", "Classifying the held-out images over gRPC"):
            served_classes = _served_classes(server.url, images)
            served_accuracy = _accuracy(served_classes, labels)
        on_result("classify", f"{len(labels)} images, served accuracy {served_accuracy:.4f}")

        with step("served parity", "Comparing the served model with FP64 PyTorch"):
            served = compare(
                checkpoint, [Candidate(TritonRunner(MODEL, server.url), "fp32")], samples
            )
        on_result("served parity", _verdict(served))

        with step("time", f"Measuring latency for {duration_s:g} s"):
            report = bench_served(
                server.url, MODEL, {"image": images[:1]}, duration_s=duration_s, warmup_s=1.0
            )
        with step("stop", "Shutting the server down"):
            stack.close()

    response = report.response
    summary = Summary(
        images=len(labels),
        torch_accuracy=torch_accuracy,
        served_accuracy=served_accuracy,
        same_decisions=bool((served_classes == torch_classes).all()),
        p50_ms=response.at(50),
        p95_ms=response.at(95),
        p99_ms=response.at(99),
        throughput=report.items_per_s,
        failed_requests=report.errors,
        parity=in_process.model_copy(update={"rows": in_process.rows + served.rows}),
        seconds=seconds,
        machine=report.context.machine,
    )
    on_result(
        "time",
        f"p50 {_ms(summary.p50_ms)}, p95 {_ms(summary.p95_ms)}, p99 {_ms(summary.p99_ms)},"
        f" {summary.throughput:.0f} images/s from one caller",
    )
    write_text(out / "quickstart.json", to_json(summary))
    return summary


def heldout_images(path: Path, checkpoint: Checkpoint) -> tuple[Array, NDArray[np.int64]]:
    """The committed held-out images, preprocessed as the checkpoint says, and their classes.

    Returns:
        Images `[n, 1, 8, 8]` float32, and classes `[n]`.
    """
    how = checkpoint.card.preprocessing
    assert isinstance(how, ImagePreprocessing)
    with np.load(require_file(path, "held-out images")) as file:
        pixels, labels = file["images"], file["labels"]
    images = np.stack([preprocess(Image.fromarray(image), how) for image in pixels])
    return images, labels


def _torch_classes(checkpoint: Checkpoint, images: Array) -> NDArray[np.int64]:
    with TorchRunner(checkpoint) as runner:
        return np.asarray(runner.run({"image": images})["logits"].argmax(-1))


def _served_classes(url: str, images: Array) -> NDArray[np.int64]:
    with Client(url) as client:
        batch = max(1, client.model_metadata(MODEL).max_batch_size)
        logits = [
            client.infer(MODEL, {"image": images[start : start + batch]})["logits"]
            for start in range(0, len(images), batch)
        ]
    return np.asarray(np.concatenate(logits).argmax(-1))


def _accuracy(classes: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    return float((classes == labels).mean())


def _deploy(model: Path, repository: Path) -> Path:
    """Make version 1 anew; a configuration that is there, with its settings, stays."""
    if (repository / MODEL / "1").exists():
        repositories.remove(MODEL, repository, version=1)
    entry = repositories.add(MODEL, model, repository, version=1)
    return entry.versions[0].directory


def _verdict(report: ParityReport) -> str:
    (row,) = report.rows
    verdict = "pass" if row.passed else "FAIL"
    return f"{row.stage}: error {row.error:.1e}, budget {row.budget:.1e}: {verdict}"


def _ms(value: float | None) -> str:
    return "not enough requests" if value is None else f"{value:.2f} ms"
