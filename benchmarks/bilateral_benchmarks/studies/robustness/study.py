"""The robustness study: accuracy under attack of torch, ONNX Runtime and the served model."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bilateral_benchmarks.report.files import write
from bilateral_benchmarks.studies.provenance import Study
from bilateral_benchmarks.studies.robustness.attacks import ATTACKS
from bilateral_benchmarks.studies.robustness.curve import (
    BUDGETS,
    check,
    load_dataset,
    robustness,
)
from bilateral_benchmarks.studies.robustness.report import RobustnessReport, plot
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.runners.base import Runner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_serving import repository
from bilateral_serving.client.runner import TritonRunner
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running


@contextlib.contextmanager
def deployed(checkpoints: Sequence[Checkpoint], grpc_port: int) -> Iterator[list[list[Runner]]]:
    """Export and serve checkpoints; yield for each its ONNX Runtime and its Triton runner."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        root = Path(scratch)
        files = []
        for number, checkpoint in enumerate(checkpoints):
            file = export_onnx(checkpoint, root / f"model{number}.onnx").path
            repository.add(
                f"model{number}",
                file,
                root / "repository",
                settings=Settings(max_batch_size=64, threads=1, warmup=False),
            )
            files.append(file)
        options = ServerOptions(
            root / "repository", grpc_port=grpc_port, http_port=None, metrics_port=None
        )
        server = stack.enter_context(running(options))
        yield [
            [
                stack.enter_context(OnnxRuntimeRunner(file)),
                stack.enter_context(TritonRunner(file.stem, server.url)),
            ]
            for file in files
        ]


def measure_robustness(
    paths: Sequence[Path],
    data_path: Path,
    folder: Path,
    *,
    images: int | None = None,
    budgets: Sequence[float] = BUDGETS,
    grpc_port: int = 8001,
    on_point: Callable[[int, int], None] = lambda done, of: None,
) -> RobustnessReport:
    """Attack checkpoints, write robustness.json, .md, .html and .png, and return the report.

    Args:
        paths: Checkpoints; those of the same kind and another seed add to the spread.
        data_path: Held-out images, `.npz`.
        folder: For the report.
        images: Only the first so many images.
        budgets: Of the attacks, in 255ths of a pixel's range.
        grpc_port: For the server; it must be free.
        on_point: Called after each point of a curve with the points done, and of all.

    Raises:
        UserError: A file is missing, or a checkpoint cannot be attacked on these images.
    """
    data = load_dataset(data_path).first(images)
    checkpoints = [load_checkpoint(path) for path in paths]
    for checkpoint in checkpoints:  # before a server is started for them
        check(checkpoint, data, budgets)
    points = len(checkpoints) * (1 + len(ATTACKS) * len(budgets))
    done = itertools.count(1)
    with deployed(checkpoints, grpc_port) as runners:
        curves = tuple(
            robustness(
                checkpoint,
                data,
                its_runners,
                budgets=budgets,
                on_point=lambda _: on_point(next(done), points),
            )
            for checkpoint, its_runners in zip(checkpoints, runners, strict=True)
        )
    report = RobustnessReport.model_validate({**Study.provenance(), "curves": curves})
    write(report, folder / "robustness.json")
    plot(curves, folder / "robustness.png")
    return report
