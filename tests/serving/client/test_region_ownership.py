"""Nobody writes to a region whose request is not over, and no answer comes from another's input.

The model adds two rows, so every answer shows what the server read. Some of its requests are slow,
so that others are given up while they wait in the server's queue.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.serving.client.test_shared_memory import mapped, registered

from bilateral_export.errors import UserError
from bilateral_serving.client import Client
from bilateral_serving.client.aio import AsyncClient
from bilateral_serving.client.connection import Connection
from bilateral_serving.client.errors import LateError
from bilateral_serving.client.grpc_connection import GrpcConnection
from bilateral_serving.client.shared_memory import LEAST_BYTES, MOST_REGIONS, Region
from bilateral_serving.server import RunningServer

LENGTH = LEAST_BYTES // 4


def request(seed: int, turns: int = 1) -> dict[str, np.ndarray]:
    """Inputs of the model "slow_sum", both large enough to be shared."""
    numbers = np.random.default_rng(seed)
    rows = {name: numbers.random((1, LENGTH), np.float32) for name in "ab"}
    return {"turns": np.int64([[turns]]), **rows}


def is_right(answer: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> bool:
    return bool((answer["sum"] == inputs["a"] + inputs["b"]).all())


@pytest.fixture
def violations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The regions that were written to while the server had a request that reads them."""
    found: list[str] = []
    reading: set[str] = set()
    start, write = Connection._start, Region.write
    make, make_later = GrpcConnection._make, GrpcConnection._make_later

    def names(method: str, message: Any) -> set[str]:
        return {
            tensor.parameters["shared_memory_region"].string_param
            for tensor in (message.inputs if method == "ModelInfer" else ())
            if "shared_memory_region" in tensor.parameters
        }

    def watched_start(self: Connection, method: str, message: Any, on_end: Any) -> Any:
        reading.update(names(method, message))
        return start(self, method, message, on_end)

    def watched_make(self: GrpcConnection, method: str, message: Any, metadata: Any) -> Any:
        """Note when the server's answer is in."""
        try:
            return make(self, method, message, metadata)
        finally:
            reading.difference_update(names(method, message))

    def watched_later(
        self: GrpcConnection, method: str, message: Any, metadata: Any, finish: Any
    ) -> bool:
        def end(result: Any) -> None:
            reading.difference_update(names(method, message))
            finish(result)

        return make_later(self, method, message, metadata, end)

    def watched_write(self: Region, offset: int, array: np.ndarray) -> None:
        if self.name in reading:
            found.append(self.name)
        write(self, offset, array)

    monkeypatch.setattr(Connection, "_start", watched_start)
    monkeypatch.setattr(GrpcConnection, "_make", watched_make)
    monkeypatch.setattr(GrpcConnection, "_make_later", watched_later)
    monkeypatch.setattr(Region, "write", watched_write)
    return found


def test_threads_with_deadlines(server: RunningServer, violations: list[str]) -> None:
    def work(worker: int) -> list[bool]:
        chance, right = random.Random(worker), []
        for number in range(40):
            inputs = request(1000 * worker + number, turns=chance.choice([1, 1, 20]))
            timeout_s = chance.choice([0.002, 0.02, 120])
            try:
                answer = client.infer("slow_sum", inputs, timeout_s=timeout_s)
                right.append(is_right(answer, inputs))
            except UserError as error:
                # Late, or so many are that no more are sent.
                right.append(isinstance(error, LateError) or "nobody waits" in error.problem)
        return right

    with Client(server.url, timeout_s=120) as client:
        client.infer("slow_sum", request(0))
        with ThreadPoolExecutor(8) as pool:
            right = [one for worker in pool.map(work, range(8)) for one in worker]
        inputs = request(7)
        right.append(is_right(client.infer("slow_sum", inputs), inputs))
    assert all(right)
    assert violations == []
    assert registered(server) == []
    assert mapped(server) == 0


def test_cancelled_tasks_give_their_regions_back(
    server: RunningServer, violations: list[str]
) -> None:
    async def run() -> None:
        chance, right = random.Random(0), []

        async def ask(seed: int) -> None:
            inputs = request(seed, turns=chance.choice([1, 5]))
            right.append(is_right(await client.infer("slow_sum", inputs), inputs))

        async with AsyncClient(server.url, timeout_s=120) as client:
            await ask(0)
            for batch in range(30):
                tasks = [asyncio.create_task(ask(100 * batch + i)) for i in range(10)]
                await asyncio.sleep(chance.choice([0, 0.001, 0.01]))
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            while client._flows._connection()._calls:  # those that were cancelled end
                await asyncio.sleep(0.01)
            regions = client._flows._connection().regions
            assert len(regions.every()) <= MOST_REGIONS
            assert len(regions._free) == len(regions.every())  # each was given back
            assert len(registered(server)) == len(regions.every())
            await ask(1)
        assert all(right)

    asyncio.run(run())
    assert violations == []
    assert registered(server) == []
    assert mapped(server) == 0


def test_a_cancelled_task_ends_at_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    finish = Connection._finish

    def finish_later(self: Connection, *args: Any) -> None:
        held.wait(240)
        finish(self, *args)

    async def run() -> None:
        async with AsyncClient(server.url, timeout_s=120) as client:
            await client.infer("slow_sum", request(0))
            monkeypatch.setattr(Connection, "_finish", finish_later)
            slow = asyncio.create_task(client.infer("slow_sum", request(0)))
            connection = client._flows._connection()
            while not connection._calls:
                await asyncio.sleep(0)
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)
            assert slow.cancelled()
            # The call itself is not over, so its region is not free.
            assert len(connection._late) == 1
            assert connection.regions._free == []
            held.set()

    asyncio.run(run())
    assert registered(server) == []


@pytest.mark.forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_children_and_their_parent_at_the_same_time(server: RunningServer) -> None:
    """Threads of the parent call while it forks, and go on while the children call and end."""
    with Client(server.url, timeout_s=120) as client:
        client.infer("slow_sum", request(0))
        right: list[bool] = []
        stop = threading.Event()

        def go_on(worker: int) -> None:
            number = 0
            while not stop.is_set():
                inputs = request(10_000 * worker + number)
                right.append(is_right(client.infer("slow_sum", inputs), inputs))
                number += 1

        def child(seed: int) -> None:
            inputs = [request(seed + number) for number in range(10)]
            answers = [client.infer("slow_sum", one) for one in inputs]
            if seed % 2:
                client.close()
            os._exit(0 if all(map(is_right, answers, inputs)) else 1)

        fork = multiprocessing.get_context("fork")
        with ThreadPoolExecutor(2) as pool:
            going = [pool.submit(go_on, worker) for worker in range(2)]
            try:
                for first in range(100_000, 400_000, 100_000):
                    children = [fork.Process(target=child, args=(first + i,)) for i in range(3)]
                    for process in children:
                        process.start()
                    for process in children:
                        process.join(240)
                        assert process.exitcode == 0
            finally:
                stop.set()
            for one in going:
                one.result()
        assert right
        assert all(right)
        inputs = request(5)
        assert is_right(client.infer("slow_sum", inputs), inputs)
    # What the children that did not close left goes with the next client.
    with Client(server.url, timeout_s=120) as client:
        client.infer("slow_sum", request(0))
    assert registered(server) == []
