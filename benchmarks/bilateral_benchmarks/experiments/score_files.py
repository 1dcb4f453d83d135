"""`bilateral score-files` against a plain loop with the same file, files and cores."""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_export.errors import UserError
from bilateral_export.files import to_json
from bilateral_export.preprocessing import ImagePreprocessing

GOAL = 0.9
_PROJECTED = 100_000_000
_MACHINES = (1, 10, 100)
_TIMEOUT_S = 3600.0
_DISPATCHED = 3000
_LISTED = 200_000


class Round(BaseModel):
    """The same files, once by plain loops and once by `bilateral score-files`, in seconds.

    Attributes:
        loop: The plain loops, from the first file to the last row.
        loop_total: The same with the start of their processes and of the model.
        scoring: `score-files`, from a worker's first chunk to the last.
        total: The same with its process, Ray, a measurement of the memory, and the models.
        worker_mib: The largest memory of a worker.
        loop_mib: Of a loop.
    """

    model_config = ConfigDict(frozen=True)

    loop: float
    loop_total: float
    scoring: float
    total: float
    worker_mib: float
    loop_mib: float


class Run(BaseModel):
    """Interleaved rounds with one number of workers.

    Attributes:
        workers: Copies of the model on Ray, one thread each; and processes of the plain loop, of
            one thread each too, that share the files.
    """

    model_config = ConfigDict(frozen=True)

    workers: int
    rounds: tuple[Round, ...]

    def median(self, value: Callable[[Round], float]) -> float:
        """Return the median of something over the rounds."""
        return statistics.median(map(value, self.rounds))

    @property
    def share(self) -> float:
        """Throughput once started, as a share of the loops'."""
        return self.median(lambda one: one.loop / one.scoring)


class ScoreFiles(Result):
    """All runs, and the constants of the driver, which does not scale with workers.

    Attributes:
        model: What scored.
        items: Images of each run.
        runs: By number of workers.
        plan_s: To list, distinguish and write down a million items.
        dispatch_s: Of Ray Data for one chunk that takes no time, on two workers.
    """

    kind: Literal["score-files"] = "score-files"
    model: str
    items: int
    runs: tuple[Run, ...]
    plan_s: float
    dispatch_s: float

    def tables(self) -> list[Table]:
        """Return the runs, and what an archive takes by the constants they measured."""
        return [self._measured(), self._projected()]

    def _measured(self) -> Table:
        first = self.runs[0]
        rows = []
        for run in self.runs:
            scoring = run.median(lambda one: one.scoring)
            loop = run.median(lambda one: one.loop)
            grown = run.workers / first.workers
            rows.append(
                (
                    str(run.workers),
                    number(self.items / loop),
                    number(self.items / scoring),
                    f"{run.share:.3f}",
                    f"{run.median(lambda one: one.loop_total / one.total):.2f}",
                    number(1000 * run.median(lambda one: one.scoring - one.loop) / self.items),
                    number(run.median(lambda one: one.total - one.scoring)),
                    number(run.median(lambda one: one.worker_mib)),
                    number(run.median(lambda one: one.loop_mib)),
                    f"{first.median(lambda one: one.scoring) / (grown * scoring):.2f}",
                    f"{first.median(lambda one: one.loop) / (grown * loop):.2f}",
                )
            )
        columns = (
            ">workers",
            ">loops' items/s",
            ">Ray's items/s",
            ">of the loops",
            ">with all starts",
            ">s more per 1,000",
            ">s to start",
            ">MiB a worker",
            ">MiB a loop",
            ">of linear",
            ">the loops",
        )
        return Table(
            f"score-files: {self.model}, {self.items:,} images, {len(first.rounds)} round(s)",
            columns,
            tuple(rows),
            (
                f"The goal is {GOAL} of plain loops: a process of one thread for each worker, which"
                " share the files. Medians of interleaved rounds.",
            ),
        )

    def _projected(self) -> Table:
        run = self.runs[-1]
        cost = run.workers * run.median(lambda one: one.scoring) / self.items
        start = run.median(lambda one: one.total - one.scoring)
        chunks = _PROJECTED / 1000
        rows = []
        for machines in _MACHINES:
            work = _PROJECTED * cost / (machines * run.workers)
            driver = max(work, chunks * self.dispatch_s)
            plan = self.plan_s * _PROJECTED / 1e6
            whole = plan + start + driver
            rows.append(
                (
                    f"{machines} machine(s) of {run.workers} cores",
                    number(whole / 3600),
                    number(plan / 3600),
                    number(work / 3600),
                    number(chunks * self.dispatch_s / 3600),
                )
            )
        notes = (
            "hours = plan + start + max(items x core-seconds / (machines x cores), chunks x"
            " dispatch)",
            f"{cost:.4f} core-seconds an item; {self.plan_s:.1f} s to plan a million;"
            f" {1000 * self.dispatch_s:.1f} ms of the driver for a chunk of 1,000; not run",
        )
        columns = ("", ">hours", ">to plan", ">to score", ">driver")
        return Table("100 million images, on paper", columns, tuple(rows), notes)

    def invalid(self) -> list[str]:
        """Return the runs that miss the goal once started."""
        return [
            f"{run.workers} worker(s): {run.share:.3f} of the loops, not {GOAL}"
            for run in self.runs
            if run.share < GOAL
        ]


def measure_score_files(
    source: str,
    items: int,
    workers: Sequence[int],
    *,
    rounds: int = 3,
    lowered: bool = True,
    on_step: Callable[[str], None] | None = None,
) -> ScoreFiles:
    """Measure `bilateral score-files` and a plain loop on PNG files of scikit-learn's digits.

    Args:
        source: A checkpoint of an image classifier, or a known model's name (random weights).
        items: How many files.
        workers: Numbers of workers, smallest first.
        rounds: How often, interleaved.
        lowered: Whether both run the file lowered for ONNX Runtime.
        on_step: Called with what is done next.

    Raises:
        UserError: The model takes no images.
    """
    from bilateral_benchmarks.experiments.contenders import checkpoint_of
    from bilateral_export.graph.export import export_onnx
    from bilateral_export.lowering.lower import lower

    say = on_step or (lambda what: None)
    with tempfile.TemporaryDirectory(prefix="bilateral-bench-") as scratch:
        folder = Path(scratch)
        say("exporting the model")
        checkpoint = checkpoint_of(source, folder)
        how = checkpoint.card.preprocessing
        if not isinstance(how, ImagePreprocessing):
            raise UserError(f"{source} takes no images", "Give an image classifier.")
        model = folder / "model.onnx"
        export_onnx(checkpoint, model)
        if lowered:
            model = lower(model, "onnxruntime-cpu", folder / "lowered.onnx").path
        say(f"writing {items} images")
        side = how.resize if isinstance(how.resize, int) else how.resize[0]
        write_images(folder / "images", items, side)
        found: dict[int, list[Round]] = {count: [] for count in workers}
        for turn in range(rounds):
            for count in workers:
                say(f"round {turn + 1} of {rounds}, {count} worker(s)")
                found[count].append(_round(folder, model, count))
        say("measuring the driver")
        return ScoreFiles(
            context=Context.now(),
            model=f"{checkpoint.card.name}{', lowered' if lowered else ''}",
            items=items,
            runs=tuple(Run(workers=count, rounds=tuple(times)) for count, times in found.items()),
            plan_s=_plan_s(folder),
            dispatch_s=_dispatch_s(),
        )


def write_images(folder: Path, count: int, side: int) -> None:
    """Write scikit-learn's digits, again and again, as RGB PNG files of `side` pixels."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pictures = (load_digits().images * (255 / 16)).astype(np.uint8)
    encoded = []
    folder.mkdir()
    for number_, pixels in enumerate(pictures[:count]):
        path = folder / f"{number_:07}.png"
        picture = Image.fromarray(pixels).convert("RGB")
        picture.resize((side, side), Image.Resampling.BICUBIC).save(path)
        encoded.append(path.read_bytes())
    for number_ in range(len(encoded), count):
        (folder / f"{number_:07}.png").write_bytes(encoded[number_ % len(encoded)])


def _round(folder: Path, model: Path, workers: int) -> Round:
    images = folder / "images"
    shares = [["-m", __name__, model, images, number_, workers] for number_ in range(workers)]
    loops, loop_total = _processes(shares)
    output = Path(tempfile.mkdtemp(prefix="scores-", dir=folder))
    command = ["score-files", model, images, "--output", output, "--workers", workers]
    (told,), total = _processes([["-m", "bilateral_cli", *command, "--threads", 1, "--json"]])
    return Round(
        loop=max(each["end"] for each in loops) - min(each["begin"] for each in loops),
        loop_total=loop_total,
        scoring=told["scoring_seconds"],
        total=total,
        worker_mib=told["worker_mib"],
        loop_mib=max(each["mib"] for each in loops),
    )


def _processes(each: Sequence[Sequence[object]]) -> tuple[list[dict[str, Any]], float]:
    """Return what processes of Python print as JSON, run at once, and their seconds in all."""
    begun = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for arguments in each
    ]
    found = []
    try:
        for process in started:
            out, err = process.communicate(timeout=_TIMEOUT_S)
            if process.returncode:
                lines = err.strip().splitlines() or [f"exit code {process.returncode}"]
                raise UserError(f"a process of the benchmark failed: {lines[-1]}")
            found.append(json.loads(out))
    finally:
        for process in started:
            process.kill()
    return found, time.perf_counter() - begun


def _plan_s(folder: Path) -> float:
    from bilateral_serving.scoring.items import Item
    from bilateral_serving.scoring.plan import extend_plan, read_plan, writing

    begun = time.perf_counter()
    with writing(folder / "planned"):
        items = (Item(f"/archive/{number:09}.jpeg") for number in range(_LISTED))
        extend_plan(read_plan(folder / "planned"), items).pending()
    return (time.perf_counter() - begun) * 1e6 / _LISTED


def _dispatch_s() -> float:
    from bilateral_serving.scoring.cluster import connected

    with connected():
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"n": number_} for number_ in range(_DISPATCHED)]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Nothing, batch_size=None, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=0.5
        )
        answers = iter(data.iter_rows())
        next(answers)  # the workers have started
        begun = time.perf_counter()
        count = sum(1 for _ in answers)
        return (time.perf_counter() - begun) / count


class _Nothing:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def _loop(path: Path, images: Path, number_: int, of: int) -> dict[str, float]:
    """Score a share of the files, batch after batch, as a script would, into one Parquet file."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
    from bilateral_serving.client.inputs.files import batched, prepare_one
    from bilateral_serving.scoring.model import load_model
    from bilateral_serving.scoring.size import peak_bytes

    model = load_model(path)
    files = sorted(images.iterdir())[number_::of]
    how, name, output = model.preprocessing, model.inputs[0].name, model.output
    found = []
    with OnnxRuntimeRunner(path, threads=1) as runner:
        begin = time.time()
        for start in range(0, len(files), model.batch):
            some = files[start : start + model.batch]
            inputs = batched([prepare_one(file, how, "") for file in some], how)
            logits = runner.run({name: inputs})[output].astype(np.float64)
            values = np.exp(logits - logits.max(axis=1, keepdims=True))
            found.append((values / values.sum(axis=1, keepdims=True)).astype(np.float32))
        rows = {"path": list(map(str, files)), "probabilities": list(np.concatenate(found))}
        pq.write_table(pa.table(rows), images.parent / f"loop-{number_}.parquet")
        return {"begin": begin, "end": time.time(), "mib": peak_bytes() / 2**20}


if __name__ == "__main__":
    measured = _loop(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    print(to_json(measured, indent=None))
