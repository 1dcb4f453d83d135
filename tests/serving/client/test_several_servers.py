"""A client of several real servers: spread load, one that leaves and comes back under load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports, management

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.client import AsyncClient, Client
from bilateral_serving.config import Settings
from bilateral_serving.front_door import calls
from bilateral_serving.server import RunningServer, ServerOptions, running

Start = Callable[[int], contextlib.AbstractContextManager[RunningServer]]
LARGE = 20_000  # numbers: they go through shared memory


@pytest.fixture(scope="module")
def models_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    repository.add(
        "arithmetic",
        models.sum_and_product(root / "a.onnx"),
        root / "models",
        settings=Settings(threads=1),
    )
    return root / "models"


@pytest.fixture(scope="module")
def start(models_directory: Path) -> Start:
    def serve(port: int) -> contextlib.AbstractContextManager[RunningServer]:
        return running(ServerOptions(models_directory, grpc_port=port, metrics_port=None))

    return serve


@pytest.fixture(scope="module")
def lasting(
    start: Start,
) -> Iterator[tuple[RunningServer, RunningServer]]:
    ports = free_ports(2)
    with start(ports[0]) as one, start(ports[1]) as other:
        yield one, other


def requests_at(server: RunningServer) -> int:
    with triton.InferenceServerClient(server.url) as raw:
        statistics = raw.get_inference_statistics(
            "arithmetic", headers=management(server.url), as_json=True
        )
    success = statistics["model_stats"][0].get("inference_stats", {}).get("success", {})
    return int(success.get("count", 0))


def ask(client: Client, number: int, size: int = 4) -> bool:
    row = np.full((1, size), number, np.float32)
    answer = client.infer("arithmetic", {"a": row, "b": row})
    return bool((answer["sum"] == 2 * row).all())


def is_ejected(client: Client, index: int) -> bool:
    return client._flows._here().balancer._servers[index].ejected


@contextlib.contextmanager
def load(client: Client, size: int = 4, callers: int = 6) -> Iterator[list[bool | UserError]]:
    """Ask from several threads until the block ends."""
    over, found = threading.Event(), list[bool | UserError]()

    def work(worker: int) -> None:
        number = worker
        while not over.is_set():
            try:
                found.append(ask(client, number % 1000, size))
            except UserError as error:
                found.append(error)
            number += callers

    with ThreadPoolExecutor(callers) as pool:
        workers = [pool.submit(work, worker) for worker in range(callers)]
        try:
            yield found
        finally:
            over.set()
    for worker in workers:
        worker.result()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_calls_are_spread(lasting: tuple[RunningServer, RunningServer]) -> None:
    before = [requests_at(server) for server in lasting]
    with Client([server.url for server in lasting], timeout_s=60) as client:
        assert all(ask(client, number) for number in range(20))

    def made() -> list[int]:
        return [requests_at(server) - old for server, old in zip(lasting, before, strict=True)]

    wait_until(lambda: sum(made()) >= 20)  # Triton counts a request after its answer
    assert sum(made()) == 20
    assert min(made()) >= 5


def test_over_asyncio_too(lasting: tuple[RunningServer, RunningServer]) -> None:
    (dead,) = free_ports(1)
    url = f"localhost:{dead}," + ",".join(server.url for server in lasting)

    async def ask_all() -> list[dict[str, np.ndarray]]:
        row = np.ones((1, LARGE), np.float32)
        async with AsyncClient(url, timeout_s=60) as client:
            many = [client.infer("arithmetic", {"a": row, "b": row}) for _ in range(30)]
            return await asyncio.gather(*many)

    assert all((answer["sum"] == 2).all() for answer in asyncio.run(ask_all()))


def test_where_nobody_answers_the_error_is_that_of_one(
    lasting: tuple[RunningServer, RunningServer],
) -> None:
    url = ",".join(f"localhost:{port}" for port in free_ports(2))
    with Client(url) as client, pytest.raises(UserError, match="no Triton server answers at"):
        client.model_metadata("arithmetic")


@pytest.mark.skipif(
    not hasattr(calls, "DRAINING"), reason="a front door that ends cancels what has just come"
)
def test_a_server_that_stops_and_returns_costs_no_request(
    lasting: tuple[RunningServer, RunningServer], start: Start
) -> None:
    (port,) = free_ports(1)
    url = ",".join((*(server.url for server in lasting), f"127.0.0.1:{port}"))
    with (
        Client(url, timeout_s=120) as client,
        load(client, callers=3) as small,
        load(client, LARGE, callers=3) as large,
    ):
        wait_until(lambda: is_ejected(client, 2))
        with start(port) as leaving:
            wait_until(lambda: requests_at(leaving) >= 40)
        wait_until(lambda: is_ejected(client, 2))
    assert [one for one in (*small, *large) if one is not True] == []


@pytest.mark.parametrize("repeat_broken", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_server_that_is_killed_costs_at_most_what_it_was_executing(
    lasting: tuple[RunningServer, RunningServer], start: Start, repeat_broken: bool
) -> None:
    (port,) = free_ports(1)
    callers = 6
    urls = (lasting[0].url, f"127.0.0.1:{port}")
    with (
        start(port) as killed,
        Client(urls, timeout_s=120, repeat_broken=repeat_broken) as client,
        load(client, LARGE if repeat_broken else 4, callers=callers) as found,
    ):
        wait_until(lambda: requests_at(killed) >= 20)
        assert killed.door_pid is not None
        os.kill(killed.door_pid, signal.SIGKILL)
        wait_until(lambda: is_ejected(client, 1))
        after = len(found)
        wait_until(lambda: len(found) > after + 60)
    failed = [one for one in found if one is not True]
    assert len(failed) <= (0 if repeat_broken else callers)
    assert all("may or may not have been executed" in str(one) for one in failed)
