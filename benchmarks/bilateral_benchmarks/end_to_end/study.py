"""Every model's journey, one process after the other, saved after each."""

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

from pydantic import BaseModel, ConfigDict, ValidationError

from bilateral_benchmarks.end_to_end.report import markdown
from bilateral_benchmarks.end_to_end.run_model import Journey
from bilateral_benchmarks.report.machine import Machine
from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text
from bilateral_export.models.registry import MODELS, named

# The models of the paper: every named one that is bilateral.
NAMES = tuple(name for name in MODELS if "bilateral" in name)
# Of one try. The slowest model takes two to seven minutes, depending on what else runs.
LIMIT_S = 1200.0


class Pipeline(BaseModel):
    """What came of all models; `pipeline.json`.

    Attributes:
        machine: Where it ran last.
        journeys: One per model that arrived, in the order of `bilateral models`.
        failures: Why the others did not, by name.
    """

    model_config = ConfigDict(frozen=True)

    machine: Machine
    journeys: tuple[Journey, ...] = ()
    failures: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        """Whether every model arrived, and is served as it was trained."""
        return not self.failures and all(journey.passed for journey in self.journeys)


def run_pipeline(
    output: Path,
    checkpoints: Path,
    only: Sequence[str] = (),
    resume: bool = False,
    on_step: Callable[[str], None] = lambda what: None,
    on_journey: Callable[[str, Journey | str], None] = lambda name, result: None,
) -> Pipeline:
    """Take models from checkpoint to gRPC, each in a process of its own.

    A model that fails is tried once more, from the start, and its result says so: tritonserver can
    die by a signal while it loads, which says nothing about the model.

    Args:
        output: Directory of `pipeline.json` and `pipeline.md`, which are written after each model.
        checkpoints: Directory of the committed checkpoints.
        only: These models alone; what the files say of others is kept.
        resume: Leave out the models that passed according to the files.
        on_step: Called with what is being done.
        on_journey: Called with each model's result, or with the reason why there is none.

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
        result = _travel_twice(name, checkpoints, on_step)
        if isinstance(result, Journey):
            journeys[name] = result
        else:
            failures[name] = result
        on_journey(name, result)
        found = _save(output, journeys, failures)
    return found or _save(output, journeys, failures)


def _travel_twice(name: str, checkpoints: Path, on_step: Callable[[str], None]) -> Journey | str:
    """The journey, or why there is none: it failed twice."""
    first = _travel(name, checkpoints, on_step)
    if isinstance(first, Journey):
        return first
    on_step(f"{name}: second try, after: {first}")
    second = _travel(name, checkpoints, on_step)
    if isinstance(second, Journey):
        return second.model_copy(update={"first_failure": first})
    return f"twice: {first}" if first == second else f"{first}; the second time: {second}"


def _travel(name: str, checkpoints: Path, on_step: Callable[[str], None]) -> Journey | str:
    """The journey in a fresh process, or why there is none. What it wrote is deleted."""
    # The process may die, and a server that died with it may still be writing.
    with tempfile.TemporaryDirectory(
        prefix="bilateral-pipeline-", ignore_cleanup_errors=True
    ) as scratch:
        result = Path(scratch) / "journey.json"
        arguments = [name, str(checkpoints), str(result)]
        start, last = time.monotonic(), ""
        process = subprocess.Popen(
            [sys.executable, "-m", "bilateral_benchmarks.end_to_end.run_model", *arguments],
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
            return Journey.model_validate_json(result.read_bytes())
    if process.returncode > 0:
        return last
    if time.monotonic() - start >= LIMIT_S:
        return f"took longer than {LIMIT_S:g} s; {last}"
    return f"died by {signal.Signals(-process.returncode).name}; {last}"


def _save(output: Path, journeys: dict[str, Journey], failures: dict[str, str]) -> Pipeline:
    document = Pipeline(
        machine=Machine.here(),
        journeys=tuple(journeys[name] for name in MODELS if name in journeys),
        failures=failures,
    )
    write_text(output / "pipeline.json", to_json(document))
    write_text(
        output / "pipeline.md", markdown(document.machine, document.journeys, document.failures)
    )
    return document


def _read(path: Path) -> Pipeline:
    try:
        return Pipeline.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path} is not what this command writes", "Remove it, or write to another directory."
        ) from error
