"""Check of the TensorRT runner on a GPU, from checkpoint to verdict (`bilateral check runner`).

Exports the checkpoint in every precision, builds it for the GPU at hand with the function body and,
where the plugin is installed, with the plugin (loaded and embedded), and judges each plan against
the FP64 model with CUDA graphs on and off, over batches on both sides of a profile boundary. Each
plan is built in a process of its own and judged in another, as a server would meet it: a plugin
loaded for building does not stand in for one in the plan, and a crash costs one case.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.cuda import read_driver
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.installation.plugin import find_plugin
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.profiles import Profile, default_profile
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import Precision
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.runners.tensorrt_runner import TensorRTRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array

# Below and above the boundary of the two profiles; some twice, so that a graph is replayed.
BATCHES = (1, 3, 8, 9, 16, 3, 8, 16, 1)
SMALL, LARGE = 8, 16
TIMED_RUNS = 50
Result = TypeVar("Result")


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
    """Yield every case; those with the plugin only where there is one."""
    for precision in get_args(Precision):
        for attention, embedded in (("function", False), ("plugin", False), ("plugin", True)):
            if attention == "function" or plugin:
                for cuda_graphs in (False, True):
                    yield Case(precision, attention, embedded, cuda_graphs)


def two_profiles(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Profile, ...]:
    """Return one profile for batches up to `SMALL`, one up to `LARGE`."""
    return tuple(default_profile(shapes, largest) for largest in (SMALL, LARGE))


def build(checkpoint_path: Path, case: Case, folder: Path, target: int) -> Path:
    """Return the plan of a case, built unless it is there.

    Args:
        checkpoint_path: The checkpoint.
        case: What to build.
        folder: Where ONNX files and plans go.
        target: The GPU's SM.
    """
    plan = folder / f"{case.precision}_{case.attention}_{case.embedded}.plan"
    if plan.exists():
        return plan
    checkpoint = load_checkpoint(checkpoint_path)
    onnx = folder / f"{case.precision}.onnx"
    if not onnx.exists():
        export_onnx(checkpoint, onnx, precision=case.precision)
    shapes = {
        spec.name: tuple(-1 if isinstance(size, str) else size for size in spec.shape)
        for spec in TorchRunner(checkpoint).inputs
    }
    library = load_library()
    options = BuildOptions(
        profiles=two_profiles(shapes),
        attention="plugin" if case.attention == "plugin" else "function",
        embed_plugin=case.embedded,
        targets=(target,) if library.ahead_of_time else (),
    )
    build_plan(onnx, plan, options, library=library)
    return plan


def judge(checkpoint_path: Path, case: Case, plan: Path) -> tuple[bool, str]:
    """Run a plan; whether it passed, and a line about it."""
    checkpoint = load_checkpoint(checkpoint_path)
    samples = random_samples(checkpoint.build_model(), BATCHES)
    runner = TensorRTRunner(plan, cuda_graphs=case.cuda_graphs)
    report = compare(checkpoint, [Candidate(runner, case.precision)], samples)
    worst = max(report.rows, key=lambda row: row.error / max(row.budget, 1e-30))
    repeated = _repeat(plan, case, samples[0])
    notes = [
        f"error {worst.error:.2e} of {worst.budget:.2e}",
        f"{repeated.milliseconds:.3f} ms at batch {BATCHES[0]}",
        f"{repeated.activation_bytes} bytes of activations, manifest"
        f" {runner.manifest.activation_bytes}",
    ]
    if case.cuda_graphs and not repeated.replayed:
        notes.append("no graph could be captured")
    if not repeated.same:
        notes.append("OUTPUTS DIFFER BETWEEN RUNS")
    return report.passed and repeated.same, ", ".join(notes)


@dataclass(frozen=True)
class _Repeated:
    """Whether repeated runs gave the same bits and replayed a graph; time of one, memory."""

    same: bool
    replayed: bool
    milliseconds: float
    activation_bytes: int


def check(checkpoint_path: Path, case: Case, folder: Path, target: int) -> tuple[bool, str]:
    """Build and judge one case; whether it passed, and a line about it."""
    try:
        plan = in_new_process(build, checkpoint_path, case, folder, target)
        return in_new_process(judge, checkpoint_path, case, plan)
    except UserError as error:
        return False, error.problem
    except Exception as error:  # a crash of the process, or whatever the library raised in it
        return False, f"{type(error).__name__}: {error}"


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Return what a function returns or raises in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _repeat(plan: Path, case: Case, sample: Sample) -> _Repeated:
    arrays: Mapping[str, Array] = sample.arrays
    with TensorRTRunner(plan, cuda_graphs=case.cuda_graphs) as runner:
        first = runner.run(arrays)
        runner.run(arrays)
        started = time.perf_counter()
        for _ in range(TIMED_RUNS):
            last = runner.run(arrays)
        milliseconds = (time.perf_counter() - started) / TIMED_RUNS * 1e3
        same = all(first[name].tobytes() == last[name].tobytes() for name in first)
        return _Repeated(same, runner.replays_graphs, milliseconds, runner.activation_bytes)


def check_runner(checkpoint: Path, say: Callable[[str], None]) -> bool:
    """Build and judge every case; return whether all passed.

    Args:
        checkpoint: The checkpoint.
        say: Called with a line about the machine, and with one for each case.

    Raises:
        UserError: There is no NVIDIA GPU, no TensorRT, or no such checkpoint.
    """
    driver = read_driver()
    if driver is None or not driver.devices:
        raise UserError("no NVIDIA GPU is visible", "Run this on a machine with one.")
    library = load_library()
    load_checkpoint(checkpoint)
    device = driver.devices[0]
    say(f"{device.name} (sm_{device.sm}), {library.name} {library.version}")
    plugin = find_plugin()
    if plugin is None:
        say("the plugin is not built (make plugin): its cases are left out")
    passed = True
    with tempfile.TemporaryDirectory(prefix="bilateral-check-") as folder:
        for case in cases(plugin=plugin is not None):
            good, line = check(checkpoint, case, Path(folder), device.sm)
            passed = passed and good
            say(f"{'pass' if good else 'FAIL'} {case}: {line}")
    return passed
