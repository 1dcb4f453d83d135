"""From a file to the first answer: in a new process, and from a new server."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.isolated import ProcessFailedError, run_module
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.plots import Bar, Plot, bar_plot
from bilateral_benchmarks.report.result import Latency, Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_benchmarks.statistics.percentiles import percentile
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_serving import repository
from bilateral_serving.client.runner import TritonRunner
from bilateral_serving.server import ServerOptions, running

ANEW, KEPT = "lowered anew, in process", "lowered form kept, in process"
_TIMEOUT_S = 600.0


class Start(BaseModel):
    """One way to start.

    Attributes:
        name: Which.
        first_s: Seconds from the start of a process to its first answer, a value a round.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    first_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median."""
        return float(np.median(self.first_s))


class ColdStart(Result):
    """How long the first answer takes.

    Attributes:
        models: How many models the server had, all of this file.
    """

    kind: Literal["cold start"] = "cold start"
    subject: str
    file_bytes: int
    models: int
    starts: tuple[Start, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return a row for each way."""
        rows = tuple(
            (start.name, number(start.median_s), number(min(start.first_s)))
            for start in self.starts
        )
        notes = (f"A file of {self.file_bytes / 1e6:.1f} MB.",)
        columns = ("", ">first answer after s", ">fastest s")
        return [Table(f"Cold start: {self.subject}", columns, rows, notes)]

    def latencies(self) -> list[Latency]:
        """Return the medians, which have an interval from six rounds on."""
        return [
            Latency(
                f"{self.subject}, {start.name}",
                (percentile(np.array(start.first_s), 50),),
                self.context,
            )
            for start in self.starts
        ]

    def plots(self) -> list[Plot]:
        """Return the medians."""
        bars = [Bar(start.name, [start.median_s]) for start in self.starts]
        return [Plot("First answer", bar_plot(bars, [], "s"))]


def measure_cold_start(
    model: Path,
    *,
    models: int = 1,
    rounds: int = 6,
    on_step: Callable[[str], None] | None = None,
) -> ColdStart:
    """Measure how long a file takes to its first answer, in every way once a round.

    The file's own directory is left alone: what is kept lies beside a link to it.

    Args:
        model: The exported file.
        models: Under how many names the server has it; the first answer is of the last one.
        rounds: How often, interleaved.
        on_step: Called with what is being done.

    Raises:
        UserError: The file cannot be run or served.
    """
    context = Context.now()
    require_file(model, "model")
    served = f"served, {models} model{'s' if models > 1 else ''}"
    times: dict[str, list[float]] = {ANEW: [], KEPT: [], served: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for index in range(models):
            repository.add(f"model{index}", model, folder / "models")
        for turn in range(rounds):
            link = folder / str(turn) / model.name
            link.parent.mkdir()
            link.symlink_to(model.absolute())
            ways = {
                ANEW: partial(_in_process, link),
                KEPT: partial(_in_process, link),
                served: partial(_served, folder / "models", f"model{models - 1}"),
            }
            for name, measure in ways.items():
                if on_step:
                    on_step(f"round {turn + 1} of {rounds}, {name}")
                times[name].append(measure())
    return ColdStart(
        subject=model.name,
        file_bytes=model.stat().st_size,
        models=models,
        starts=tuple(Start(name=name, first_s=tuple(found)) for name, found in times.items()),
        context=context,
    )


def _in_process(model: Path) -> float:
    begun = time.perf_counter()
    try:
        run_module(__name__, str(model), timeout_s=_TIMEOUT_S)
    except ProcessFailedError as error:
        raise UserError(f"{model.name} cannot be run: {error}", "Export it again.") from error
    return time.perf_counter() - begun


def _served(models: Path, name: str) -> float:
    options = ServerOptions(models, grpc_port=free_port(), http_port=None, metrics_port=None)
    begun = time.perf_counter()
    with running(options) as server, TritonRunner(name, server.url) as runner:
        runner.run(made_up(runner.inputs))
        return time.perf_counter() - begun


def _main(model: Path) -> None:
    from bilateral_export.runners.lowered import LoweredRunner

    with LoweredRunner(model) as runner:
        runner.run(made_up(runner.inputs))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
