"""Capacity of a model on this machine: settings and rate that hold a p99 latency, and replicas.

The settings are searched by Optuna's tree-structured Parzen estimator (Akiba et al., 2019): a
server is started for each candidate, and the highest rate that it holds is found with Poisson
arrivals.

Replicas: requests of many callers that are spread at random over N replicas arrive at each as a
Poisson process of 1/N of the rate, so that N replicas together hold N times the rate of one.
Spreading them in turns is kinder to each replica than that.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.scenarios import ScenarioResult, run_scenario
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.load.schedule import require_positive
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_export.errors import UserError
from bilateral_serving import config as configs
from bilateral_serving.client import Client
from bilateral_serving.config import CONFIG_FILE
from bilateral_serving.repository import show
from bilateral_serving.server import ServerOptions, running

_DELAYS_US = (0, 500, 2000)
_BATCHES = (1, 4, 8, 16, 32)
# The parameter that says a backend's threads.
_THREADS = {"python": "threads", "onnxruntime": "intra_op_thread_count"}
# Of the Server scenario, for each candidate.
_SEARCH_S = 25.0


class Candidate(BaseModel):
    """Settings of a served model."""

    model_config = ConfigDict(frozen=True)

    instances: int
    threads: int
    max_batch_size: int
    max_queue_delay_us: int

    def __str__(self) -> str:
        batch = f", batches up to {self.max_batch_size}" if self.max_batch_size else ""
        delay = f", {self.max_queue_delay_us} us of delay" if self.max_queue_delay_us else ""
        return f"{self.instances} x {self.threads} threads{batch}{delay}"

    @property
    def options(self) -> str:
        """The settings as `bilateral repository add` takes them."""
        return (
            f"--instances {self.instances} --threads {self.threads}"
            f" --max-batch-size {self.max_batch_size}"
            f" --max-queue-delay-us {self.max_queue_delay_us}"
        )


class Trial(BaseModel):
    """A candidate, and the highest rate at which it held the bound; 0: none."""

    model_config = ConfigDict(frozen=True)

    candidate: Candidate
    rate: float
    p99_ms: float | None


class Capacity(Result):
    """What one machine holds, and how many are needed.

    Attributes:
        subject: The model.
        bound_ms: What the p99 latency must not exceed.
        trials: Every candidate, in the order tried.
        wanted: Requests a second that are to be answered; None: not asked.
        headroom: Share of each replica's rate that is kept free.
    """

    kind: Literal["capacity"] = "capacity"
    subject: str
    bound_ms: float
    trials: tuple[Trial, ...]
    wanted: float | None = None
    headroom: float = 0.3

    @property
    def best(self) -> Trial | None:
        """The candidate that held the highest rate; None if none held any."""
        held = [trial for trial in self.trials if trial.rate > 0]
        return max(held, key=lambda trial: trial.rate) if held else None

    @property
    def replicas(self) -> int | None:
        """How many machines like this one the wanted rate needs."""
        if self.wanted is None or self.best is None:
            return None
        return replicas_for(self.wanted, self.best.rate, self.headroom)

    def tables(self) -> list[Table]:
        """Return the candidates, the best first, and the replicas."""
        ordered = sorted(self.trials, key=lambda trial: -trial.rate)
        rows = tuple(
            (str(trial.candidate), number(trial.rate or None), number(trial.p99_ms))
            for trial in ordered
        )
        title = f"Capacity of {self.subject}: p99 at most {self.bound_ms:g} ms"
        options = self.best.candidate.options if self.best else ""
        notes = (f"bilateral repository add ... {options}",) if options else ()
        tables = [Table(title, ("settings", ">requests/s", ">p99 ms"), rows, notes)]
        if self.best is not None and self.replicas is not None and self.wanted is not None:
            count, share = self.replicas, self.wanted / self.best.rate
            left = f"{share / (count - 1):.0%}" if count > 1 else "none is left"
            needed = (
                ("replicas", str(count)),
                ("of its rate each is used", f"{share / count:.0%}"),
                ("and when one is gone", left),
            )
            title = f"Replicas for {number(self.wanted)} requests/s"
            tables.append(Table(title, ("", ">value"), needed))
        return tables

    def invalid(self) -> list[str]:
        """Return that no candidate held the bound."""
        return [] if self.best else [f"no settings hold a p99 of {self.bound_ms:g} ms"]


def replicas_for(wanted: float, rate: float, headroom: float) -> int:
    """Return how many replicas of that rate hold a wanted rate with a share kept free.

    Raises:
        UserError: A rate is not positive, or the head-room no share below 1.
    """
    require_positive(wanted, f"a rate of {wanted:g}")
    require_positive(rate, f"a rate of {rate:g}")
    if not 0 <= headroom < 1:
        raise UserError(f"a head-room of {headroom:g}", "Give a share, such as 0.3.")
    return math.ceil(wanted / (rate * (1 - headroom)) - 1e-9)


def measure_capacity(
    name: str,
    repository: Path,
    *,
    bound_ms: float,
    wanted: float | None = None,
    headroom: float = 0.3,
    trials: int = 12,
    duration_s: float = 4.0,
    length: int = 128,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> Capacity:
    """Search the settings of a model that hold a p99 latency at the highest rate on this machine.

    Args:
        name: The model.
        repository: Where it is; it is served from a copy with other settings.
        bound_ms: What the p99 response time must not exceed.
        wanted: Requests a second for which to say how many replicas are needed.
        headroom: Share of each replica's rate to keep free.
        trials: How many candidates are tried at most; half a minute each.
        duration_s: Least length of a measurement.
        length: Size of every free axis but the batch.
        seed: Of the search.
        on_step: Called with what is being done.

    Raises:
        UserError: The model is not there, a number is not positive, or Optuna is not installed.
    """
    require_positive(bound_ms, f"a bound of {bound_ms:g} ms")
    require_positive(trials, f"{trials} trials")
    if wanted is not None:
        replicas_for(wanted, 1.0, headroom)
    entry = show(name, repository)
    if not entry.versions:
        raise UserError(
            f"model '{name}' has no version", "Add one with `bilateral repository add`."
        )
    context = Context.now()
    done: dict[Candidate, Trial] = {}

    def rate_of(candidate: Candidate) -> float:
        if candidate not in done:
            on_step(f"{len(done) + 1} of {trials}: {candidate}")
            found = _measure(entry.directory, candidate, bound_ms, duration_s, length)
            p99 = found.report.p99_ms if found.report else None
            done[candidate] = Trial(candidate=candidate, rate=found.value or 0.0, p99_ms=p99)
        return done[candidate].rate

    _search(rate_of, space(entry.max_batch_size, os.cpu_count() or 1), trials, seed)
    return Capacity(
        subject=name,
        bound_ms=bound_ms,
        trials=tuple(done.values()),
        wanted=wanted,
        headroom=headroom,
        context=context,
    )


def space(max_batch: int, cores: int) -> dict[str, list[int]]:
    """Return the values of each setting that are worth trying."""
    counts = sorted({1, *(2**power for power in range(1, 8) if 2**power <= cores), cores})
    batches = [size for size in _BATCHES if size <= max(max_batch, 1)] if max_batch else [0]
    return {
        "instances": counts,
        "threads": counts,
        "max_batch_size": batches,
        "max_queue_delay_us": list(_DELAYS_US) if len(batches) > 1 else [0],
    }


def _search(
    rate_of: Callable[[Candidate], float], values: dict[str, list[int]], trials: int, seed: int
) -> None:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "the search for settings needs Optuna",
            "Install it with `pip install 'bilateral-serve[capacity]'`.",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
    )
    # What people would try first.
    cores = values["threads"][-1]
    study.enqueue_trial({"instances": 1, "threads": cores, **_first(values)})
    study.enqueue_trial({"instances": cores, "threads": 1, **_first(values)})

    def objective(trial: Any) -> float:
        chosen = {key: trial.suggest_categorical(key, options) for key, options in values.items()}
        return rate_of(Candidate(**chosen))

    study.optimize(objective, n_trials=min(trials, math.prod(map(len, values.values()))))


def _first(values: dict[str, list[int]]) -> dict[str, int]:
    return {
        "max_batch_size": values["max_batch_size"][-1],
        "max_queue_delay_us": values["max_queue_delay_us"][0],
    }


def _measure(
    directory: Path, candidate: Candidate, bound_ms: float, duration_s: float, length: int
) -> ScenarioResult:
    with tempfile.TemporaryDirectory(prefix="bilateral-capacity-") as scratch:
        copy_with(directory, Path(scratch), candidate)
        options = ServerOptions(
            Path(scratch), grpc_port=free_port(), http_port=None, metrics_port=None
        )
        with running(options) as server, Client(server.url) as client:
            inputs = client.model_metadata(directory.name).inputs
            return run_scenario(
                "Server",
                server.url,
                directory.name,
                made_up(inputs, 1, length),
                duration_s=duration_s,
                warmup_s=0.5,
                bound_ms=bound_ms,
                search_s=_SEARCH_S,
            )


def copy_with(directory: Path, repository: Path, candidate: Candidate) -> None:
    """Put a model of other settings, the same files else, into another repository."""
    target = repository / directory.name
    shutil.copytree(directory, target, copy_function=_link)
    path = target / CONFIG_FILE
    config = configs.read(path)
    for group in config.instance_group:
        group.count = candidate.instances
    if (key := _THREADS.get(config.backend)) is not None:
        config.parameters[key].string_value = str(candidate.threads)
    if config.max_batch_size:
        config.max_batch_size = candidate.max_batch_size
        config.dynamic_batching.max_queue_delay_microseconds = candidate.max_queue_delay_us
        for warmup in list(config.model_warmup):
            if warmup.batch_size > candidate.max_batch_size:
                config.model_warmup.remove(warmup)
    path.unlink()  # a hard link of the original
    path.write_text(configs.write(config), encoding="utf-8")


def _link(source: str, target: str) -> str:
    """Link a file, or copy it where it lies on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
