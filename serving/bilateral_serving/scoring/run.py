"""An archive scored by Ray Data: chunks of the plan to workers, each of which writes its parts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text
from bilateral_serving.scoring.attempts import Attempts
from bilateral_serving.scoring.cluster import connected
from bilateral_serving.scoring.items import Item, Source, list_items
from bilateral_serving.scoring.model import Model
from bilateral_serving.scoring.parts import write_part
from bilateral_serving.scoring.plan import Chunk, extend_plan, read_plan, writing
from bilateral_serving.scoring.scorer import Scorer
from bilateral_serving.scoring.size import (
    Size,
    Wanted,
    batch_of,
    choose_size,
    measure_worker,
    peak_bytes,
)

RUN_FILE = "_run.json"
OnProgress = Callable[[int, int], None]
"""Called with how many items have their row, and how many there are."""


class Summary(BaseModel):
    """What a run did.

    Attributes:
        output: The folder.
        model, model_sha256, parity: What scored.
        items: Rows of the folder.
        scored: Rows that this run wrote.
        failed: Of these, how many have a reason instead of scores.
        seconds: How long it took, with Ray's start.
        scoring_seconds: The same from the first worker's first chunk on.
        workers, threads, batch: Of the run; 0 where all was scored already.
        worker_mib: The largest memory of a worker.
    """

    model_config = ConfigDict(frozen=True)

    output: str
    model: str
    model_sha256: str
    parity: str
    items: int
    scored: int = 0
    failed: int = 0
    seconds: float = 0.0
    scoring_seconds: float = 0.0
    workers: int = 0
    threads: int = 0
    batch: int = 0
    worker_mib: float = 0.0


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Attributes:
        model: The model.
        folder: The output folder.
        size: Of the workers.
        content: The Parquet column with the items' content; "" for files.
        top: As in `write_part`.
    """

    model: Model
    folder: Path
    size: Size
    content: str
    top: int


def score_files(
    model: Model,
    source: Source,
    output: Path,
    *,
    wanted: Wanted | None = None,
    limit: int | None = None,
    top: int = 0,
    address: str = "",
    on_progress: OnProgress | None = None,
) -> Summary:
    """Write one row for each item into Parquet files of a folder.

    However a run ends, the same call goes on from what is there: each item gets one row. Items that
    are new in the source are added.

    Args:
        model: See `load_model`.
        source: Where the items come from.
        output: The folder; new, or of a run with the same model.
        wanted: What to decide about the workers.
        limit: How many of the source's items; None: all.
        top: Keep the probabilities of so many classes only; 0: of all.
        address: Of a Ray cluster; "": this machine. A cluster's machines need this package, and the
            model, the items and the output at the same paths.
        on_progress: See `OnProgress`.

    Raises:
        UserError: There is nothing to score, the folder holds something else, or the model cannot
            be run.
    """
    begun = time.monotonic()
    wanted = wanted or Wanted()
    batch_of(model, wanted)
    output = output.absolute()
    said = {**model.identity, "content": source.content, "top": top}
    _check_folder(output, said)
    items = _some_items(source, model)
    with writing(output):
        write_text(output / RUN_FILE, to_json(said))
        plan = extend_plan(read_plan(output), items, limit)
        pending, total = plan.pending(), sum(plan.sizes)
        done = total - sum(size for _, size in pending)
        report = on_progress or (lambda done, total: None)
        report(done, total)
        found = Summary(output=str(output), items=total, **_about(model))
        if not pending:
            return found
        results = []
        with connected(address) as has:
            size = choose_size(model, wanted, has, _measured(model, batch_of(model, wanted)))
            job = Job(model, output, size, source.content, top)
            for result in _scored(job, [chunk for chunk, _ in pending]):
                results.append(result)
                done += int(result["items"])
                report(done, total)
    ended = {**_totals(results, size), "seconds": time.monotonic() - begun}
    return found.model_copy(update=ended)


def _some_items(source: Source, model: Model) -> Iterator[Item]:
    """Return a source's items.

    Raises:
        UserError: It has none.
    """
    items = list_items(source, model.endings)
    first = list(islice(items, 1))
    if not first:
        raise UserError(
            f"{source.data} has no item for model '{model.metadata.name}'",
            f"It takes files that end in {', '.join(model.endings)}, or rows of Parquet.",
        )
    return chain(first, items)


def _totals(results: Sequence[dict[str, float]], size: Size) -> dict[str, float]:
    """Return what a summary says of the chunks that were scored."""
    return {
        "scored": sum(int(each["items"]) for each in results),
        "failed": sum(int(each["failed"]) for each in results),
        "scoring_seconds": max(e["end"] for e in results) - min(e["begin"] for e in results),
        "worker_mib": max(each["memory"] for each in results) / 2**20,
        "workers": size.workers,
        "threads": size.threads,
        "batch": size.batch,
    }


class Worker:
    """The process of one copy of the model, as Ray Data calls it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._scorer: Scorer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the chunk of a batch of one and write its part, or return why it cannot be done.

        Ray Data does not pass on what its functions raise.
        """
        chunk = Chunk(int(batch["file"][0]), int(batch["group"][0]))
        try:
            told = {"refused": "", "fix": "", **self.score(chunk)}
        except UserError as error:
            told = {"refused": error.problem, "fix": error.fix}
        return {name: np.array([value]) for name, value in told.items()}

    def _opened(self) -> Scorer:
        if self._scorer is None:
            size = self._job.size
            made = Scorer(
                self._job.model, size.threads, size.batch, size.readers, self._job.content
            )
            self._scorer = made.__enter__()
        return self._scorer

    def score(self, chunk: Chunk) -> dict[str, float]:
        """Score one chunk, write its part, and return how it went."""
        scorer, folder, begin = self._opened(), self._job.folder, time.time()
        attempts = Attempts(folder, chunk.part)
        items = chunk.read(folder)
        scored = attempts.score(scorer, items)
        write_part(folder / chunk.part, items, scored, self._job.model, self._job.top)
        attempts.end()
        return {
            "items": len(items),
            "failed": sum(bool(each.error) for each in scored),
            "begin": begin,
            "end": time.time(),
            "memory": float(peak_bytes()),
        }


def _scored(job: Job, chunks: Sequence[Chunk]) -> Iterator[dict[str, float]]:
    """Yield how each chunk went, in the order in which they are done."""
    import ray.data  # configures its logger

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    size = job.size
    # A block for each chunk, from this process: read tasks would wait for cores that workers have.
    rows = [{"file": chunk.file, "group": chunk.group} for chunk in chunks]
    scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=size.workers,
            initial_size=size.workers,
            # One waits while one is scored; of more, a worker would have several at the end while
            # the others have none.
            max_tasks_in_flight_per_actor=2,
        ),
        num_cpus=size.cpus,
        num_gpus=size.gpus,
        memory=size.memory_bytes,
    )
    try:
        for told in scored.iter_rows():
            if told["refused"]:
                raise UserError(told["refused"], told["fix"])
            yield told
    except UserError:
        raise
    except Exception as error:
        raise _of_worker(error) from error


def _measured(model: Model, batch: int) -> int:
    """Return what a worker needs, measured in a process of the cluster."""
    import ray

    gpus = 1 if model.on_gpu else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1, max_retries=0)(measure_worker)
    try:
        return int(ray.get(task.remote(model, batch)))
    except Exception as error:
        raise _of_worker(error) from error


def _of_worker(error: BaseException) -> BaseException:
    """Return what a worker raised, without Ray's wrappings, or what became of Ray in one line."""
    from ray.exceptions import RayError, RayTaskError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError) and not isinstance(seen, RayError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        return UserError(f"Ray gave up: {reason}", "The same command again goes on.")
    return error


def _about(model: Model) -> dict[str, Any]:
    return {
        "model": model.metadata.name,
        "model_sha256": model.sha256,
        "parity": model.parity,
    }


def _check_folder(output: Path, said: dict[str, Any]) -> None:
    """Refuse a folder that holds rows of something else.

    Raises:
        UserError: It does, or is not a folder.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output} is not a folder", "Give a folder to write, new or to go on in.")
    file = output / RUN_FILE
    if not file.exists():
        if any(not path.name.startswith("_") for path in output.iterdir()):
            raise UserError(f"{output} holds other files", "Choose an empty or a new folder.")
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged", "Choose another folder.") from error
    for name, value in said.items():
        if there.get(name) != value:
            raise UserError(
                f"{output} holds rows of another {name}: {there.get(name)}, not {value}",
                "Choose another folder.",
            )
