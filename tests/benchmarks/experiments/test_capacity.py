"""The search for capacity, and the arithmetic of replicas against servers that were measured."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports

from bilateral_benchmarks.experiments.capacity import (
    Candidate,
    Capacity,
    Trial,
    _search,
    copy_with,
    measure_capacity,
    replicas_for,
    space,
)
from bilateral_benchmarks.experiments.scenarios import run_scenario
from bilateral_benchmarks.experiments.served import GrpcTarget
from bilateral_benchmarks.load.generator import Send
from bilateral_benchmarks.load.report import summarise
from bilateral_benchmarks.load.request import serialise
from bilateral_benchmarks.load.run import run_load
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.report.context import Context
from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import CONFIG_FILE, Settings
from bilateral_serving.server import ServerOptions, running


@given(st.floats(0.1, 1e6), st.floats(0.1, 1e5), st.floats(0.0, 0.95))
def test_replicas_hold_the_rate_and_one_less_would_not(
    wanted: float, rate: float, headroom: float
) -> None:
    count = replicas_for(wanted, rate, headroom)
    kept = rate * (1 - headroom)
    assert count >= 1
    assert count * kept >= wanted * (1 - 1e-6)
    assert (count - 1) * kept < wanted


@pytest.mark.parametrize("headroom", [-0.1, 1.0, math.nan])
def test_a_share_that_cannot_be_kept_free_is_refused(headroom: float) -> None:
    with pytest.raises(UserError, match="head-room"):
        replicas_for(1.0, 1.0, headroom)


def test_the_search_finds_the_best_of_a_known_landscape() -> None:
    tried = []

    def rate_of(candidate: Candidate) -> float:
        far = 10 * abs(candidate.instances - 2) + abs(candidate.threads - 4)
        return 100.0 - far - candidate.max_queue_delay_us / 100

    def measured(candidate: Candidate) -> float:
        tried.append(candidate)
        return rate_of(candidate)

    values = space(8, 8)
    _search(measured, values, 40, seed=0)
    best = max(tried, key=rate_of)
    assert (best.instances, best.threads, best.max_queue_delay_us) == (2, 4, 0)
    assert len(tried) < math.prod(map(len, values.values()))


def test_a_model_without_batches_is_searched_without_batches() -> None:
    values = space(0, 4)
    assert values["max_batch_size"] == values["max_queue_delay_us"] == [0]
    assert values["threads"] == [1, 2, 4]
    assert space(8, 6)["instances"] == [1, 2, 4, 6]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one model."""
    path = models.quadrants(tmp_path / "m.onnx")
    repository.add("m", path, tmp_path / "models", settings=Settings(threads=1))
    return tmp_path / "models"


def test_candidates_are_served_from_a_copy(root: Path, tmp_path: Path) -> None:
    before = (root / "m" / CONFIG_FILE).read_text()
    candidate = Candidate(instances=2, threads=3, max_batch_size=4, max_queue_delay_us=500)
    copy_with(root / "m", tmp_path / "copy", candidate)
    entry = repository.show("m", tmp_path / "copy")
    assert (entry.instances, entry.threads) == (2, 3)
    assert (entry.max_batch_size, entry.max_queue_delay_us) == (4, 500)
    assert (root / "m" / CONFIG_FILE).read_text() == before


def test_what_cannot_be_measured_is_refused_at_once(root: Path) -> None:
    with pytest.raises(UserError, match="bound"):
        measure_capacity("m", root, bound_ms=0)
    with pytest.raises(UserError, match="rate"):
        measure_capacity("m", root, bound_ms=10, wanted=-1)
    with pytest.raises(UserError, match="nobody"):
        measure_capacity("nobody", root, bound_ms=10)


def test_the_result_names_the_settings_and_the_replicas() -> None:
    one = Candidate(instances=1, threads=2, max_batch_size=8, max_queue_delay_us=0)
    two = Candidate(instances=2, threads=1, max_batch_size=8, max_queue_delay_us=0)
    held = Trial(candidate=one, rate=100, p99_ms=9)
    missed = Trial(candidate=two, rate=0, p99_ms=None)
    found = Capacity(subject="m", bound_ms=10, trials=(missed, held), wanted=250, headroom=0.0)
    assert found.best == held
    assert found.replicas == 3
    settings, replicas = found.tables()
    assert "--instances 1 --threads 2 --max-batch-size 8" in settings.notes[0]
    assert replicas.rows[0][1] == "3"
    assert not found.invalid()
    nothing = found.model_copy(update={"trials": (missed,)})
    assert nothing.replicas is None
    assert nothing.invalid()


@pytest.mark.slow
@pytest.mark.timing
def test_a_capacity_is_measured_on_a_real_server(root: Path) -> None:
    found = measure_capacity("m", root, bound_ms=2000, wanted=10_000, trials=1, duration_s=0.5)
    assert found.best is not None
    assert found.best.rate > 10
    assert found.replicas is not None


# It waits 20 ms, and uses no processor meanwhile.
WAITING = """
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        time.sleep(0.02)
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x)])
"""
CONFIG = """
name: "wait"
backend: "python"
max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
ONE = {"x": np.ones(1, np.float32)}


@dataclass
class Spread:
    """Sends each request to a server drawn at random."""

    targets: list[GrpcTarget]
    _closing: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def __aenter__(self) -> Send:
        sends = [await self._closing.enter_async_context(target) for target in self.targets]
        chance = random.Random(0)
        return lambda: chance.choice(sends)()

    async def __aexit__(self, *error: object) -> None:
        await self._closing.aclose()


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Three servers of a model that waits."""
    root = tmp_path_factory.mktemp("waiting")
    (root / "wait" / "1").mkdir(parents=True)
    (root / "wait" / CONFIG_FILE).write_text(CONFIG)
    (root / "wait" / "1" / "model.py").write_text(WAITING)

    def options() -> ServerOptions:
        return ServerOptions(root, grpc_port=free_ports(1)[0], http_port=None, metrics_port=None)

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(options())).url for _ in range(3)]


def p99_at(urls: list[str], rate: float) -> float:
    """The p99 latency of requests spread at random, in ms."""
    target = Spread([GrpcTarget(url, serialise("wait", ONE)) for url in urls])
    load, plan = Load(rate=rate), Plan.lasting(1500 / rate, 1.0)
    outcome = run_load(target, load, plan)
    report = summarise("served", "spread", ONE, load, plan, outcome, Context.now())
    assert report.p99_ms is not None
    return report.p99_ms


@pytest.mark.slow
@pytest.mark.timing
def test_replicas_hold_what_the_arithmetic_says(waiting: list[str]) -> None:
    """An M/D/1 queue at the rate of one, and at that rate each of two and of three."""
    bound = 100.0
    alone = run_scenario("Server", waiting[0], "wait", ONE, duration_s=8.0, bound_ms=bound)
    assert alone.value is not None
    print(f"one server: {alone.value:.1f} requests/s at p99 <= {bound:g} ms")
    for count in (2, 3):
        kept = p99_at(waiting[:count], 0.9 * count * alone.value)
        lost = p99_at(waiting[:count], 1.25 * count * alone.value)
        print(
            f"{count} servers: p99 {kept:.0f} ms at 0.9 x {count}, {lost:.0f} ms at 1.25 x {count}"
        )
        assert kept <= bound < lost
