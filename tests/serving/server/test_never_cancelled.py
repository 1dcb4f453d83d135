"""Triton 2.51 dies within seconds of callers whose deadlines pass, if gRPC cancels their calls."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from tests.serving.client.test_shared_memory import check, mapped, registered, rows

from bilateral_export.errors import UserError
from bilateral_serving.client import Client
from bilateral_serving.client.aio import AsyncClient
from bilateral_serving.client.errors import LateError
from bilateral_serving.client.shared_memory import MOST_REGIONS
from bilateral_serving.server import RunningServer


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_late_and_cancelled_callers_cost_a_patient_one_nothing(
    server: RunningServer, seconds: float
) -> None:
    end = time.monotonic() + seconds
    errors: list[UserError] = []

    def hurry(client: Client, count: int, timeout_s: float) -> None:
        pixels = np.zeros((count, 1, 2, 2), np.float32)
        while time.monotonic() < end:
            try:
                client.infer("batched", {"pixel_values": pixels}, timeout_s=timeout_s)
            except UserError as error:
                errors.append(error)
                time.sleep(0 if isinstance(error, LateError) else 0.01)

    async def cancel() -> int:
        async with AsyncClient(server.url, timeout_s=120) as client:
            await client.infer("arithmetic", rows(0))
            regions = client._flows._connection().regions
            most = 0
            while time.monotonic() < end:
                calls = [client.infer("arithmetic", rows(seed)) for seed in range(20)]
                tasks = [asyncio.create_task(call) for call in calls]
                await asyncio.sleep(0.005)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                most = max(most, len(regions.every()))
            return most

    with Client(server.url) as single, Client(server.url) as batches, Client(server.url) as patient:
        threads = [threading.Thread(target=hurry, args=(single, 1, 0.01)) for _ in range(16)]
        threads += [threading.Thread(target=hurry, args=(batches, 8, 0.05)) for _ in range(8)]
        threads.append(threading.Thread(target=lambda: most.append(asyncio.run(cancel()))))
        most: list[int] = []
        for thread in threads:
            thread.start()
        seed = 0
        while time.monotonic() < end:
            inputs = rows(seed)
            check(patient.infer("arithmetic", inputs, timeout_s=240), inputs)
            seed += 1
        for thread in threads:
            thread.join()
        check(patient.infer("arithmetic", inputs, timeout_s=240), inputs)
    assert any(isinstance(error, LateError) for error in errors)
    assert all(isinstance(error, LateError) or "nobody waits" in error.problem for error in errors)
    assert most[0] <= MOST_REGIONS
    assert registered(server) == []
    assert mapped(server) == 0
