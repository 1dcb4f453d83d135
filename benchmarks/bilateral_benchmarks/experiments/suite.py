"""The benchmark suite: every experiment in one run, as the committed results are made."""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from bilateral_benchmarks.experiments.breakdown import measure_breakdown
from bilateral_benchmarks.experiments.comparison import run_comparison
from bilateral_benchmarks.experiments.contenders import (
    attention_forms,
    checkpoint_of,
    goals_of,
    usual_contenders,
)
from bilateral_benchmarks.experiments.crossover import LENGTHS, measure_crossover
from bilateral_benchmarks.experiments.document import BenchDocument, Item, Part, load_document
from bilateral_benchmarks.experiments.generator_limit import limit_on_this_machine
from bilateral_benchmarks.experiments.operator_profile import profile_operators
from bilateral_benchmarks.experiments.overhead import measure_overhead
from bilateral_benchmarks.experiments.scaling import measure_scaling
from bilateral_benchmarks.experiments.scenarios import Scenario, run_scenario
from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.experiments.sweep import sweep
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.load.report import Report
from bilateral_benchmarks.load.schedule import Load
from bilateral_benchmarks.report.files import write_json
from bilateral_benchmarks.statistics.interleave import OnRound
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.lowering.lower import lower
from bilateral_export.runners.lowered import LoweredRunner
from bilateral_export.runners.registry import RUNTIMES
from bilateral_export.tensors import Array
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

OnStep = Callable[[str], None]
OnPart = Callable[[int, int], None]
Size: TypeAlias = "int | None"

TITLE = "Latency of bilateral-serve"
TINY, SMALL = "deit_bilateral_tiny_patch16_224", "deit_bilateral_small_patch16_224"
DIGITS = "digits_bilateral"
SERVING_SETTINGS = {
    "defaults": Settings(),
    "threads that do not spin": Settings(spinning=False),
    "two instances of one thread": Settings(instances=2, threads=1),
    "openvino": Settings(runtime="openvino"),
    "openvino, two instances": Settings(runtime="openvino", instances=2, threads=1),
}
# The server's overhead by settings has its own part; the others measure the first of them.
DEFAULTS = next(iter(SERVING_SETTINGS))
# p99 of MultiStream needs 368 requests of a tenth of a second.
SCENARIO_SECONDS: dict[Scenario, float] = {
    "SingleStream": 6.0,
    "MultiStream": 45.0,
    "Server": 6.0,
    "Offline": 8.0,
}


class Suite:
    """Runs parts one after the other, and writes the document anew after each.

    A part that fails is noted and the others go on. What the output file has of parts that are not
    run is kept, so that a run that was interrupted is completed into the same document.

    Args:
        output: The JSON file.
        quick: Fewer rounds and the smallest model only: to see that everything works.
        only: Names of the parts to run. None: all.
        missing: Run only those that the output file lacks, or where they failed.
        on_step: Called with what is being done.
        on_part: Called with the number of parts done, and of all.
        on_round: Called after each round of a comparison.

    Raises:
        UserError: There is no such part, or the output file is something else, or has parts that
            are none of this suite's.
    """

    def __init__(
        self,
        output: Path,
        *,
        quick: bool = False,
        only: Sequence[str] | None = None,
        missing: bool = False,
        on_step: OnStep | None = None,
        on_part: OnPart | None = None,
        on_round: OnRound | None = None,
    ) -> None:
        self._output = output
        self._quick = quick
        self._say = on_step or (lambda what: None)
        self._on_part = on_part or (lambda done, of: None)
        self._on_round = on_round
        self._exports: dict[tuple[str, Size], tuple[Checkpoint, Path]] = {}
        self._parts = self._all_parts()
        unknown = sorted(set(only or ()) - set(self._parts))
        if unknown:
            names = ", ".join(self._parts)
            raise UserError(f"the suite has no part '{unknown[0]}'", f"It has {names}.")
        self._kept: dict[str, tuple[Part, tuple[Item, ...]]] = {}
        if output.exists() and (only is not None or missing):
            self._kept = _by_part(load_document(output))
            if not set(self._kept) <= set(self._parts):
                other = min(set(self._kept) - set(self._parts))
                raise UserError(
                    f"{output} has results of {other or 'another command'}, which would be lost",
                    "Give another --output, or --quick as when it was made.",
                )
        done = {name for name, (part, _) in self._kept.items() if part.failure is None}
        self._chosen = [
            name
            for name in self._parts
            if (only is None or name in only) and not (missing and name in done)
        ]

    def run(self) -> BenchDocument:
        """Run the parts; the result is also in the output file."""
        with tempfile.TemporaryDirectory() as scratch:
            self._folder = Path(scratch)
            for number, name in enumerate(self._chosen):
                self._on_part(number, len(self._chosen))
                self._say(name)
                self._run_part(name)
        self._on_part(len(self._chosen), len(self._chosen))
        return self._document()

    def _all_parts(self) -> Mapping[str, Callable[[], Iterator[Item]]]:
        """Return what each part runs, in the order of the document."""
        bind = functools.partial
        if self._quick:
            return {
                "runtimes-digits": bind(self._runtimes, DIGITS, None),
                "forms-digits": bind(self._forms, DIGITS, None),
                "growth": self._scaling,
                "crossover": self._crossover,
                "overhead": bind(self._overhead, DIGITS),
                "serving": bind(self._serving, DIGITS),
                "scenarios": bind(self._scenarios, DIGITS),
                "generator": self._generator,
            }
        return {
            "runtimes-tiny": bind(self._runtimes, TINY, None),
            "runtimes-small": bind(self._runtimes, SMALL, None),
            "runtimes-512": bind(self._runtimes, SMALL, 512),
            "forms-small": bind(self._forms, SMALL, None),
            "forms-512": bind(self._forms, SMALL, 512),
            "growth": self._scaling,
            "crossover": self._crossover,
            "overhead": bind(self._overhead, TINY),
            "serving": bind(self._serving, TINY),
            "scenarios": bind(self._scenarios, TINY),
            "generator": self._generator,
        }

    def _run_part(self, name: str) -> None:
        items: list[Item] = []
        begun = time.monotonic()
        failure = None
        try:
            for item in self._parts[name]():
                items.append(item)
                self._keep(name, items, begun, "interrupted")
        except Exception as error:
            # A long run is not thrown away for one part; the report says what is missing.
            traceback.print_exc(file=sys.stderr)
            failure = f"{type(error).__name__}: {str(error)[:200]}"
        self._keep(name, items, begun, failure)

    def _keep(self, name: str, items: list[Item], begun: float, failure: str | None) -> None:
        seconds = round(time.monotonic() - begun, 1)
        part = Part(name=name, items=len(items), seconds=seconds, failure=failure)
        self._kept[name] = (part, tuple(items))
        write_json(self._document(), self._output)

    def _document(self) -> BenchDocument:
        kept = [self._kept[name] for name in self._parts if name in self._kept]
        return BenchDocument(
            title=TITLE,
            items=tuple(item for _, items in kept for item in items),
            failures=tuple(f"{part.name}: {part.failure}" for part, _ in kept if part.failure),
            parts=tuple(part for part, _ in kept),
        )

    def _runtimes(self, name: str, size: Size) -> Iterator[Item]:
        """Yield what a user would pick instead, side by side."""
        checkpoint, exported = self._export(name, size)
        title = checkpoint.card.name
        folder = self._scratch(f"runtimes {title}")
        compiled = name == SMALL and size is None
        yield run_comparison(
            f"{title}, runtimes",
            checkpoint,
            exported,
            list(usual_contenders(checkpoint, exported, folder, compiled=compiled)),
            rounds=self._rounds(size),
            goals=goals_of(title),
            on_step=self._say,
            on_round=self._on_round,
        )
        lowered = lower(exported, "onnxruntime-cpu", folder / "stages.onnx").path
        yield profile_operators(title, lowered, rounds=self._rounds(size), on_step=self._say)

    def _forms(self, name: str, size: Size) -> Iterator[Item]:
        """Yield the forms of attention, with their memory."""
        checkpoint, exported = self._export(name, size)
        title = checkpoint.card.name
        folder = self._scratch(f"forms {title}")
        yield run_comparison(
            f"{title}, forms of attention",
            checkpoint,
            exported,
            list(attention_forms(checkpoint, exported, folder)),
            rounds=self._rounds(size),
            memory=True,
            on_step=self._say,
            on_round=self._on_round,
        )

    def _rounds(self, size: Size) -> int:
        return 6 if self._quick else 8 if size else 15

    def _scaling(self) -> Iterator[Item]:
        lengths = (197, 577) if self._quick else (1025, 2026, 4097, 8101, 16385)
        seconds = 0.2 if self._quick else 1.0
        yield measure_scaling(lengths, seconds=seconds, on_point=self._say)

    def _crossover(self) -> Iterator[Item]:
        lengths = LENGTHS[:2] if self._quick else LENGTHS
        yield measure_crossover(lengths, rounds=6 if self._quick else 12, on_step=self._say)

    def _overhead(self, name: str) -> Iterator[Item]:
        """Yield what serving costs, by settings."""
        ways = {
            way: settings
            for way, settings in SERVING_SETTINGS.items()
            if RUNTIMES[settings.runtime].installed
        }
        _, exported = self._export(name, None)
        names = {way: way.replace(",", "").replace(" ", "_") for way in ways}
        served = {names[way]: (exported, settings) for way, settings in ways.items()}
        with self._server(served) as url, LoweredRunner(exported) as runner:
            yield measure_overhead(
                url,
                name,
                names,
                runner,
                made_up(runner.inputs),
                rounds=2 if self._quick else 6,
                seconds=self._seconds / 4,
                on_step=self._say,
            )

    def _serving(self, name: str) -> Iterator[Item]:
        """Yield where the time goes, and throughput against latency."""
        _, exported = self._export(name, None)
        served = {DEFAULTS: (exported, SERVING_SETTINGS[DEFAULTS])}
        with self._server(served) as url, LoweredRunner(exported) as runner:
            arrays = made_up(runner.inputs)
            self._say("breakdown")
            yield measure_breakdown(
                url,
                DEFAULTS,
                arrays,
                duration_s=self._seconds,
                in_process=lambda: runner.run(arrays),
            )
            callers = [1.0, 2.0] if self._quick else [1.0, 2.0, 4.0, 8.0]
            yield sweep(
                "concurrency",
                callers,
                name,
                lambda n: self._report(url, DEFAULTS, arrays, Load(concurrency=int(n))),
            )

    def _scenarios(self, name: str) -> Iterator[Item]:
        """MLPerf's four."""
        _, exported = self._export(name, None)
        served = {DEFAULTS: (exported, SERVING_SETTINGS[DEFAULTS])}
        with self._server(served) as url, LoweredRunner(exported) as runner:
            for scenario, seconds in SCENARIO_SECONDS.items():
                self._say(f"scenario {scenario}")
                yield run_scenario(
                    scenario,
                    url,
                    DEFAULTS,
                    made_up(runner.inputs),
                    duration_s=self._seconds if self._quick else seconds,
                    warmup_s=1.0,
                    bound_ms=100.0,
                )

    def _generator(self) -> Iterator[Item]:
        """Yield how many requests a second one process of ours can send on schedule."""
        seconds = 0.6 if self._quick else 3.0
        yield limit_on_this_machine(duration_s=seconds, on_step=self._say)

    @property
    def _seconds(self) -> float:
        """Of one measurement of a served model."""
        return 2.4 if self._quick else 6.0

    def _report(self, url: str, model: str, arrays: Mapping[str, Array], load: Load) -> Report:
        self._say(f"{model}, {load}")
        return bench_served(url, model, arrays, duration_s=self._seconds, warmup_s=1.0, load=load)

    @contextlib.contextmanager
    def _server(self, models: Mapping[str, tuple[Path, Settings]]) -> Iterator[str]:
        """Run a server with these models; yield its address."""
        directory = Path(tempfile.mkdtemp(dir=self._folder))
        for name, (exported, settings) in models.items():
            repository.add(name, exported, directory, settings=settings)
        # Compared with the model in process is Triton; the front door has its own report.
        options = ServerOptions(directory, grpc_port=free_port(), metrics_port=None, direct=True)
        self._say("starting the server")
        with running(options) as server:
            yield server.url

    def _export(self, name: str, size: Size) -> tuple[Checkpoint, Path]:
        if (name, size) not in self._exports:
            self._say(f"exporting {name}")
            folder = self._scratch(f"{name} {size}")
            checkpoint = checkpoint_of(name, folder, size)
            exported = folder / f"{name}.onnx"
            export_onnx(checkpoint, exported)
            self._exports[name, size] = checkpoint, exported
        return self._exports[name, size]

    def _scratch(self, name: str) -> Path:
        folder = self._folder / name.replace(" ", "_")
        folder.mkdir(exist_ok=True)
        return folder


def _by_part(document: BenchDocument) -> dict[str, tuple[Part, tuple[Item, ...]]]:
    """Return a document's items by the part that made them; those that none made are under ""."""
    found = {}
    at = 0
    for part in document.parts:
        found[part.name] = (part, document.items[at : at + part.items])
        at += part.items
    if rest := document.items[at:]:
        found[""] = (Part(name="", items=len(rest), seconds=0.0), rest)
    return found
