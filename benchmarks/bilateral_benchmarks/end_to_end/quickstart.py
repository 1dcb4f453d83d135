"""The quickstart: a trained checkpoint becomes a verified gRPC service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.end_to_end.run_model import Say, Steps, run_model
from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.report.files import write_json
from bilateral_benchmarks.report.machine import Machine
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.files import require_file
from bilateral_export.metadata import ImagePreprocessing
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.parity.report.document import ParityReport
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array
from bilateral_serving.client import Client
from bilateral_serving.client.inputs.images import preprocess
from bilateral_serving.server import RunningServer

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
    steps = Steps(lambda _, doing: on_step(doing), on_result)
    images: Array
    labels: NDArray[np.int64]
    torch_classes: NDArray[np.int64]
    served_classes: NDArray[np.int64]

    def load(say: Say) -> Checkpoint:
        nonlocal images, labels, torch_classes
        checkpoint = load_checkpoint(checkpoints / "digits_bilateral.safetensors")
        images, labels = heldout_images(checkpoints / "digits_heldout.npz", checkpoint)
        torch_classes = _torch_classes(checkpoint, images)
        say(f"{checkpoint.card.name}, torch accuracy {_accuracy(torch_classes, labels):.4f}")
        return checkpoint

    def samples_of(checkpoint: Checkpoint) -> Sequence[Sample]:
        drawn = random_samples(checkpoint.build_model())
        return [*drawn, Sample("held out", {"image": images[:8]})]

    def check(server: RunningServer, _: Checkpoint) -> None:
        nonlocal served_classes
        with steps("classify", "Classifying the held-out images over gRPC") as say:
            served_classes = _served_classes(server.url, images)
            accuracy = _accuracy(served_classes, labels)
            say(f"{len(labels)} images, served accuracy {accuracy:.4f}")

    with ExitStack() as stack:
        run = stack.enter_context(
            run_model(MODEL, load, samples_of, check, folder=out, models=repository, steps=steps)
        )
        with steps("time", f"Measuring latency for {duration_s:g} s"):
            report = bench_served(
                run.server.url, MODEL, {"image": images[:1]}, duration_s=duration_s, warmup_s=1.0
            )
        with steps("stop", "Shutting the server down"):
            stack.close()

    summary = Summary(
        images=len(labels),
        torch_accuracy=_accuracy(torch_classes, labels),
        served_accuracy=_accuracy(served_classes, labels),
        same_decisions=bool((served_classes == torch_classes).all()),
        p50_ms=report.p50_ms,
        p95_ms=report.p95_ms,
        p99_ms=report.p99_ms,
        throughput=report.items_per_s,
        failed_requests=report.errors,
        parity=run.parity,
        seconds=steps.seconds,
        machine=report.context.machine,
    )
    on_result(
        "time",
        f"p50 {_ms(summary.p50_ms)}, p95 {_ms(summary.p95_ms)}, p99 {_ms(summary.p99_ms)},"
        f" {summary.throughput:.0f} images/s from one caller",
    )
    write_json(summary, out / "quickstart.json")
    return summary


def heldout_images(path: Path, checkpoint: Checkpoint) -> tuple[Array, NDArray[np.int64]]:
    """Return the committed held-out images, preprocessed as the checkpoint says, and their classes.

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


def _ms(value: float | None) -> str:
    return "not enough requests" if value is None else f"{value:.2f} ms"
