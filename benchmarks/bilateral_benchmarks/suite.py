"""Everything in one run: the committed results are made by this, from random weights or yours."""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from bilateral_benchmarks.breakdown import measure_breakdown
from bilateral_benchmarks.comparison import run_comparison
from bilateral_benchmarks.contenders import attention_forms, checkpoint_of, usual_contenders
from bilateral_benchmarks.document import Document, Item, save_document
from bilateral_benchmarks.growth import measure_growth
from bilateral_benchmarks.inputs import made_up
from bilateral_benchmarks.load import Load
from bilateral_benchmarks.overhead import measure_overhead
from bilateral_benchmarks.ports import free_port
from bilateral_benchmarks.report import Report
from bilateral_benchmarks.scenarios import SCENARIOS, run_scenario
from bilateral_benchmarks.served import bench_served
from bilateral_benchmarks.sweep import sweep
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.lowering.lower import lower
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

OnStep = Callable[[str], None]

# Opset 23 has the standard Attention operator, which the ablation wants beside the others.
OPSET = 23
TINY, SMALL = "deit_bilateral_tiny_patch16_224", "deit_bilateral_small_patch16_224"
DIGITS = "digits_bilateral"
WAYS = {
    "defaults": Settings(),
    "threads that do not spin": Settings(spinning=False),
    "two instances of one thread": Settings(instances=2, threads=1),
    "openvino": Settings(runtime="openvino"),
    "openvino, two instances": Settings(runtime="openvino", instances=2, threads=1),
}


class Suite:
    """Runs the parts one after the other; one that fails is noted and the others go on.

    Args:
        output: The JSON file; it is written anew after each part.
        quick: Fewer rounds and the smallest model only: to see that everything works.
        on_step: Called with what is being done.
    """

    def __init__(self, output: Path, *, quick: bool = False, on_step: OnStep | None = None) -> None:
        self._output = output
        self._quick = quick
        self._say = on_step or (lambda what: None)
        self._items: list[Item] = []
        self._failures: list[str] = []

    def run(self) -> Document:
        """Run everything; the result is also in the output file."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            models: list[tuple[str, int | None]] = [(TINY, None), (SMALL, None), (SMALL, 512)]
            for name, size in [(DIGITS, None)] if self._quick else models:
                what = f"{name} at {size or 'its own size'}"
                self._part(what, functools.partial(self._model, folder, name, size))
            self._part("growth", self._growth)
            served = DIGITS if self._quick else TINY
            self._part(f"serving {served}", lambda: self._served(folder, served))
        return self._document()

    def _model(self, folder: Path, name: str, image_size: int | None) -> None:
        """Runtimes side by side, then forms of attention."""
        folder = folder / f"{name}_{image_size or ''}"
        folder.mkdir(parents=True)
        checkpoint, exported = self._export(folder, name, image_size)
        title = checkpoint.card.name
        rounds = 6 if self._quick else 8 if image_size else 15
        compiled = name == SMALL and image_size is None
        contenders = list(usual_contenders(checkpoint, exported, folder, compiled=compiled))
        self._keep(
            run_comparison(
                f"{title}, runtimes",
                checkpoint,
                exported,
                contenders,
                rounds=rounds,
                on_step=self._say,
            )
        )
        if name == TINY:
            return
        forms = list(attention_forms(checkpoint, exported, folder))
        self._keep(
            run_comparison(
                f"{title}, forms of attention",
                checkpoint,
                exported,
                forms,
                rounds=rounds,
                memory=True,
                on_step=self._say,
            )
        )

    def _growth(self) -> None:
        lengths = (197, 577) if self._quick else (197, 577, 1025, 2048, 4096, 16384)
        self._keep(measure_growth(lengths, seconds=0.2 if self._quick else 1.0, on_point=self._say))

    def _served(self, folder: Path, name: str) -> None:
        """Overhead by settings, breakdown, sweeps, scenarios, and the generator's own limit."""
        _, exported = self._export(folder, name, None)
        models, port = folder / "repository", free_port()
        absent = importlib.util.find_spec("openvino") is None
        ways = {
            way: settings
            for way, settings in WAYS.items()
            if not (absent and settings.runtime == "openvino")
        }
        names = {way: way.replace(",", "").replace(" ", "_") for way in ways}
        for way, settings in ways.items():
            repository.add(names[way], exported, models, settings=settings)
        if name != DIGITS:
            small = folder / "digits"
            small.mkdir()
            _, tiny = self._export(small, DIGITS, None)
            repository.add("digits", tiny, models)
        options = ServerOptions(models, grpc_port=port, http_port=None, metrics_port=None)
        lowered = lower(exported, "onnxruntime-cpu", folder / "in_process.onnx")
        seconds = 0.6 if self._quick else 1.5
        with running(options) as server, OnnxRuntimeRunner(lowered.path) as runner:
            arrays = made_up(runner.inputs)
            main = names["defaults"]
            self._keep(
                measure_overhead(
                    server.url,
                    name,
                    names,
                    runner,
                    arrays,
                    rounds=2 if self._quick else 6,
                    seconds=seconds,
                    on_step=self._say,
                )
            )
            self._say("breakdown")
            self._keep(
                measure_breakdown(
                    server.url,
                    main,
                    arrays,
                    duration_s=4 * seconds,
                    in_process=lambda: runner.run(arrays),
                )
            )

            def at(model: str, load: Load) -> Report:
                self._say(f"{model}, {load}")
                inputs = made_up(runner.inputs) if model == main else digits
                return bench_served(
                    server.url, model, inputs, duration_s=4 * seconds, warmup_s=1.0, load=load
                )

            callers = [1, 2] if self._quick else [1, 2, 4, 8]
            self._keep(
                sweep("concurrency", callers, name, lambda n: at(main, Load(concurrency=int(n))))
            )
            for scenario in SCENARIOS[:1] if self._quick else SCENARIOS:
                self._say(scenario)
                self._keep(
                    run_scenario(
                        scenario,
                        server.url,
                        main,
                        arrays,
                        duration_s=4 * seconds,
                        warmup_s=1.0,
                        bound_ms=100.0,
                    )
                )
            model = main if name == DIGITS else "digits"
            digits = arrays if name == DIGITS else {"image": arrays["image"][:, :1, :8, :8].copy()}
            rates = [200.0] if self._quick else [500.0, 1000.0, 2000.0, 3000.0]
            self._keep(
                sweep(
                    "rate",
                    rates,
                    "digits, one generator process",
                    lambda rate: at(model, Load(rate=rate)),
                )
            )

    def _export(self, folder: Path, name: str, size: int | None) -> tuple[Checkpoint, Path]:
        self._say(f"exporting {name}")
        checkpoint = checkpoint_of(name, folder, size)
        exported = folder / f"{name}.onnx"
        export_onnx(checkpoint, exported, opset=OPSET)
        return checkpoint, exported

    def _keep(self, item: Item) -> None:
        self._items.append(item)
        save_document(self._document(), self._output)

    def _part(self, what: str, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:
            # A long run is not thrown away for one part; the report says what is missing.
            traceback.print_exc(file=sys.stderr)
            self._failures.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            save_document(self._document(), self._output)

    def _document(self) -> Document:
        return Document(
            title="Latency of bilateral-serve",
            items=tuple(self._items),
            failures=tuple(self._failures),
        )
