"""One real tritonserver for the whole folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports

from bilateral_serving import repository
from bilateral_serving.client import Client, connection, streams
from bilateral_serving.config import Settings
from bilateral_serving.server import RunningServer, ServerOptions, running

BATCHING = Settings(max_batch_size=8, threads=1, max_queue_delay_us=100_000)


@pytest.fixture(autouse=True)
def a_loaded_machine_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing and forking wait for calls under way, streams for their end, however long."""
    for bound in ("CLOSING_S", "_UNMAPPING_S", "_FORK_S"):
        monkeypatch.setattr(connection, bound, 120.0)
    monkeypatch.setattr(streams, "_PATIENCE_S", 120.0)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("served")
    files, served = root / "files", root / "repository"
    for version, gain in ((1, 8.0), (2, 4.0)):
        repository.add(
            "quadrants",
            models.quadrants(files / f"v{version}.onnx", gain=gain),
            served,
            settings=Settings(max_batch_size=4, threads=1, versions="all"),
        )
    one = Settings(threads=1)
    repository.add("arithmetic", models.sum_and_product(files / "a.onnx"), served, settings=one)
    repository.add("features", models.features(files / "e.onnx"), served, settings=one)
    repository.add("fixed", models.quadrants(files / "f.onnx", batch=1), served, settings=one)
    repository.add("copies", models.copies(files / "c.onnx"), served, settings=one)
    alone = Settings(max_batch_size=1, threads=1)
    repository.add("slow", models.slow(files / "s.onnx"), served, settings=alone)
    repository.add("slow_sum", models.slow_sum(files / "t.onnx"), served, settings=alone)
    limited = Settings(max_batch_size=1, threads=1, max_queue_size=1)
    repository.add("limited", models.slow(files / "q.onnx"), served, settings=limited)
    repository.add("largest", models.largest(files / "m.onnx"), served, settings=one)
    repository.add("lookup", models.lookup(files / "l.onnx"), served, settings=BATCHING)
    repository.add("batched", models.quadrants(files / "b.onnx"), served, settings=BATCHING)
    narrow = models.PREPROCESSING.model_copy(update={"std": (1e-10,)})
    overflowing = models.quadrants(files / "o.onnx", gain=3e38, preprocessing=narrow)
    repository.add("overflowing", overflowing, served, settings=one)
    repository.add("reciprocal", models.reciprocal(files / "r.onnx"), served, settings=BATCHING)
    # What an interrupted `add` of a killed process can leave must not disturb a server.
    (served / ".partial-left").mkdir()
    grpc, metrics = free_ports(2)
    options = ServerOptions(served, grpc_port=grpc, metrics_port=metrics)
    with running(options) as ready:
        yield ready


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url, timeout_s=120) as connected:
        yield connected
