"""Checks the TensorRT runner on a GPU, from checkpoint to verdict, in one command.

    python -m bilateral_export.runners.tensorrt_check CHECKPOINT

Exports the checkpoint in every precision, builds it for the GPU at hand with the function body and,
where the plugin is installed, with the plugin (loaded and embedded), and judges each plan against
the FP64 model with CUDA graphs on and off, over batches on both sides of a profile boundary. Exit
code 0 when all passes, 1 when something does not, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.cuda import read_driver
from bilateral_export.engine.library import Library, load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.profiles import Profile, default_profile
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import Precision
from bilateral_export.models.zoo import exportable
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.samples import Sample, random_samples
from bilateral_export.plugin import find_plugin
from bilateral_export.runners.tensorrt_runner import TensorRTRunner
from bilateral_export.runners.torch_runner import TorchRunner
from bilateral_export.tensors import Array

# Below and above the boundary of the two profiles; some twice, so that a graph is replayed.
BATCHES = (1, 3, 8, 9, 16, 3, 8, 16, 1)
SMALL, LARGE = 8, 16
TIMED_RUNS = 50


@dataclass(frozen=True)
class Case:
    """One way to build and run."""

    precision: Precision
    attention: str
    embedded: bool
    cuda_graphs: bool

    def __str__(self) -> str:
        path = self.attention + (" embedded" if self.embedded else "")
        return f"{self.precision} {path}, graphs {'on' if self.cuda_graphs else 'off'}"


def cases(plugin: bool) -> Iterator[Case]:
    """Every case; those with the plugin only where there is one."""
    for precision in get_args(Precision):
        for attention, embedded in (("function", False), ("plugin", False), ("plugin", True)):
            if attention == "function" or plugin:
                for cuda_graphs in (False, True):
                    yield Case(precision, attention, embedded, cuda_graphs)


def two_profiles(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Profile, ...]:
    """One profile for batches up to `SMALL`, one up to `LARGE`."""
    return tuple(default_profile(shapes, largest) for largest in (SMALL, LARGE))


def check(
    checkpoint: Checkpoint, case: Case, folder: Path, library: Library, target: int
) -> tuple[bool, str]:
    """Run one case; whether it passed, and a line about it."""
    onnx = folder / f"{case.precision}.onnx"
    if not onnx.exists():
        export_onnx(checkpoint, onnx, precision=case.precision)
    specs = TorchRunner(checkpoint).inputs
    shapes = {
        spec.name: tuple(-1 if isinstance(size, str) else size for size in spec.shape)
        for spec in specs
    }
    options = BuildOptions(
        profiles=two_profiles(shapes),
        attention="plugin" if case.attention == "plugin" else "function",
        embed_plugin=case.embedded,
        targets=(target,) if library.ahead_of_time else (),
    )
    plan = folder / f"{case.precision}_{case.attention}_{case.embedded}.plan"
    if not plan.exists():
        build_plan(onnx, plan, options, library=library)
    samples = random_samples(exportable(checkpoint.build_model()), BATCHES)
    runner = TensorRTRunner(plan, cuda_graphs=case.cuda_graphs)
    report = compare(checkpoint, [Candidate(runner, case.precision)], samples)
    worst = max(report.rows, key=lambda row: row.error / max(row.budget, 1e-30))
    line = f"{case}: error {worst.error:.2e} of {worst.budget:.2e}"
    same, milliseconds = _repeat(plan, case, samples[0])
    return report.passed and same, f"{line}, {milliseconds:.3f} ms at batch {BATCHES[0]}" + (
        "" if same else ", OUTPUTS DIFFER BETWEEN RUNS"
    )


def _repeat(plan: Path, case: Case, sample: Sample) -> tuple[bool, float]:
    """Whether repeated runs give the same bits, and the mean time of one."""
    arrays: Mapping[str, Array] = sample.arrays
    with TensorRTRunner(plan, cuda_graphs=case.cuda_graphs) as runner:
        first = runner.run(arrays)
        runner.run(arrays)
        started = time.perf_counter()
        for _ in range(TIMED_RUNS):
            last = runner.run(arrays)
        milliseconds = (time.perf_counter() - started) / TIMED_RUNS * 1e3
    same = all(first[name].tobytes() == last[name].tobytes() for name in first)
    return same, milliseconds


def main(arguments: list[str] | None = None) -> int:
    """Run all cases and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_export.runners.tensorrt_check", description=__doc__
    )
    parser.add_argument("checkpoint", type=Path)
    options = parser.parse_args(arguments)
    try:
        driver = read_driver()
        if driver is None or not driver.devices:
            raise UserError("no NVIDIA GPU is visible", "Run this on a machine with one.")
        library = load_library()
        checkpoint = load_checkpoint(options.checkpoint)
        device = driver.devices[0]
        print(f"{device.name} (sm_{device.sm}), {library.name} {library.version}")
        passed = True
        with tempfile.TemporaryDirectory(prefix="bilateral-check-") as folder:
            for case in cases(plugin=find_plugin() is not None):
                good, line = check(checkpoint, case, Path(folder), library, device.sm)
                passed = passed and good
                print(f"{'pass' if good else 'FAIL'} {line}", flush=True)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
