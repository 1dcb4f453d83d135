"""Measure robustness on torch, ONNX Runtime and the served model, and draw the curves.

    python -m bilateral_benchmarks.studies.robustness export/checkpoints/digits_*.safetensors

Checkpoints of the same kind and another seed (`train_digits.py --seed`) add to the spread shown.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bilateral_benchmarks.report.machine import Machine, git_revision
from bilateral_benchmarks.studies.robustness.attacks import ATTACKS
from bilateral_benchmarks.studies.robustness.curve import (
    BUDGETS,
    Curve,
    check,
    load_dataset,
    robustness,
)
from bilateral_benchmarks.studies.robustness.report import RobustnessReport, markdown, plot
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text
from bilateral_export.graph.export import export_onnx
from bilateral_export.runners.base import Runner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_serving import repository
from bilateral_serving.client.runner import TritonRunner
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running


@contextlib.contextmanager
def deployed(checkpoints: Sequence[Checkpoint], grpc_port: int) -> Iterator[list[list[Runner]]]:
    """Export and serve checkpoints; yield, for each, its ONNX Runtime and its Triton runner."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write JSON, PNG and Markdown."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.studies.robustness",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=Path("export/checkpoints/digits_heldout.npz"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--images", type=int, help="only the first so many held-out images")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, metavar="255THS")
    parser.add_argument("--grpc-port", type=int, default=8001, help="for the server, free")
    parsed = parser.parse_args(arguments)

    data = load_dataset(parsed.data).first(parsed.images)
    checkpoints = [load_checkpoint(path) for path in parsed.checkpoints]
    for checkpoint in checkpoints:  # before a server is started for them
        check(checkpoint, data, parsed.budgets)
    curves: list[Curve] = []
    points = len(checkpoints) * (1 + len(ATTACKS) * len(parsed.budgets))
    with (
        deployed(checkpoints, parsed.grpc_port) as runners,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("attacking", total=points)
        for checkpoint, its_runners in zip(checkpoints, runners, strict=True):
            curves.append(
                robustness(
                    checkpoint,
                    data,
                    its_runners,
                    budgets=parsed.budgets,
                    on_point=lambda _: progress.advance(task),
                )
            )
    report = RobustnessReport(
        command=" ".join(
            ["python -m bilateral_benchmarks.studies.robustness", *(arguments or sys.argv[1:])]
        ),
        revision=git_revision(),
        machine=Machine.here(),
        curves=tuple(curves),
    )
    write_text(parsed.out / "robustness.json", to_json(report))
    plot(curves, parsed.out / "robustness.png")
    text = markdown(curves)
    write_text(parsed.out / "robustness.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
