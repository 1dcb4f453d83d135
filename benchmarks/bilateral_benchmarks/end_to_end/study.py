"""The pipeline study: every model in a process of its own, saved after each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bilateral_benchmarks.end_to_end.model_report import ModelReport
from bilateral_benchmarks.end_to_end.report import Pipeline
from bilateral_benchmarks.report.files import read, write
from bilateral_benchmarks.report.machine import Machine
from bilateral_export.models.registry import MODELS, named

# The models of the paper: every named one that is bilateral.
NAMES = tuple(name for name in MODELS if "bilateral" in name)
# Of one try. The slowest model takes two to seven minutes, depending on what else runs.
LIMIT_S = 1200.0


def run_pipeline(
    output: Path,
    checkpoints: Path,
    only: Sequence[str] = (),
    resume: bool = False,
    on_step: Callable[[str], None] = lambda what: None,
    on_report: Callable[[str, ModelReport | str], None] = lambda name, result: None,
) -> Pipeline:
    """Run models from checkpoint to gRPC, each in a process of its own, and report.

    A model that fails is tried once more, from the start, and its result says so: tritonserver can
    die by a signal while it loads, which says nothing about the model.

    Args:
        output: Directory of `pipeline.json`, `.md` and `.html`, which are written after each model.
        checkpoints: Directory of the committed checkpoints.
        only: These models alone; what the files say of others is kept.
        resume: Leave out the models that passed according to the files.
        on_step: Called with what is being done.
        on_report: Called with each model's result, or with the reason why there is none.

    Raises:
        UserError: A name is unknown, or with `only` or `resume` the files are not a pipeline's.
    """
    for name in only:
        named(name)
    target = output / "pipeline.json"
    found = _read(target) if (only or resume) and target.is_file() else None
    journeys = {journey.name: journey for journey in found.journeys} if found else {}
    failures = dict(found.failures) if found else {}
    for name in only or NAMES:
        if resume and name in journeys and journeys[name].passed:
            continue
        journeys.pop(name, None)
        failures.pop(name, None)
        result = _run_twice(name, checkpoints, on_step)
        if isinstance(result, ModelReport):
            journeys[name] = result
        else:
            failures[name] = result
        on_report(name, result)
        found = _save(output, journeys, failures)
    return found or _save(output, journeys, failures)


def _run_twice(name: str, checkpoints: Path, on_step: Callable[[str], None]) -> ModelReport | str:
    """Return the report, or why there is none: it failed twice."""
    first = _run_once(name, checkpoints, on_step)
    if isinstance(first, ModelReport):
        return first
    on_step(f"{name}: second try, after: {first}")
    second = _run_once(name, checkpoints, on_step)
    if isinstance(second, ModelReport):
        return second.model_copy(update={"first_failure": first})
    return f"twice: {first}" if first == second else f"{first}; the second time: {second}"


def _run_once(name: str, checkpoints: Path, on_step: Callable[[str], None]) -> ModelReport | str:
    """Return the report, made in a fresh process whose files are deleted, or why there is none."""
    # The process may die, and a server that died with it may still be writing.
    with tempfile.TemporaryDirectory(
        prefix="bilateral-pipeline-", ignore_cleanup_errors=True
    ) as scratch:
        result = Path(scratch) / "report.json"
        arguments = [name, str(checkpoints), str(result)]
        start, last = time.monotonic(), ""
        process = subprocess.Popen(
            [sys.executable, "-m", "bilateral_benchmarks.end_to_end.model_report", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": scratch},
        )
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            with process:
                assert process.stderr is not None
                for line in process.stderr:
                    last = line.strip() or last
                    if last.startswith(f"{name}: "):
                        on_step(last)
        finally:
            limit.cancel()
        if process.returncode == 0:
            return ModelReport.model_validate_json(result.read_bytes())
    if process.returncode > 0:
        return last
    if time.monotonic() - start >= LIMIT_S:
        return f"took longer than {LIMIT_S:g} s; {last}"
    return f"died by {signal.Signals(-process.returncode).name}; {last}"


def _save(output: Path, journeys: dict[str, ModelReport], failures: dict[str, str]) -> Pipeline:
    document = Pipeline(
        machine=Machine.here(),
        journeys=tuple(journeys[name] for name in MODELS if name in journeys),
        failures=failures,
    )
    write(document, output / "pipeline.json")
    return document


def _read(path: Path) -> Pipeline:
    fix = "Remove it, or write to another directory."
    return read(Pipeline, path, "is not what this command writes", fix)
