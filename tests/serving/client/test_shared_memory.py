"""Large inputs through shared memory, with a real server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.serving.server.live_processes import management

from bilateral_export.errors import UserError
from bilateral_export.tensors import TensorSpec
from bilateral_serving.access import is_loopback
from bilateral_serving.client import Client, shared_memory
from bilateral_serving.client.aio import AsyncClient
from bilateral_serving.client.shared_memory import LEAST_BYTES, Region, layout
from bilateral_serving.server import RunningServer

LARGE = LEAST_BYTES // 4  # numbers of four bytes


def rows(seed: int, count: int = 1, length: int = LARGE) -> dict[str, np.ndarray]:
    """Inputs of the model "arithmetic", each as large as it must be to be shared."""
    random = np.random.default_rng(seed)
    return {name: random.random((count, length), np.float32) for name in "ab"}


def check(answer: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(answer["sum"], inputs["a"] + inputs["b"])


def registered(server: RunningServer) -> list[str]:
    with triton.InferenceServerClient(server.url) as raw:
        return list(raw.get_system_shared_memory_status(headers=management(server.url)).regions)


def mapped(server: RunningServer) -> int:
    """How many regions of clients the server's memory map has."""
    return Path(f"/proc/{server.pid}/maps").read_text().count("bilateral-client")


def named(process: int) -> list[Path]:
    """The regions of a process that still have a name; clients of other tests may have some too."""
    return list(Path("/dev/shm").glob(f"bilateral-client.*-{process:x}-*"))


@pytest.fixture(autouse=True)
def nothing_is_left(server: RunningServer) -> Iterator[None]:
    yield
    assert registered(server) == []
    assert mapped(server) == 0
    assert named(os.getpid()) == []


def test_the_answer_is_the_same_and_the_memory_is_used_again(server: RunningServer) -> None:
    with Client(server.url) as client:
        for seed in range(3):
            inputs = rows(seed)
            check(client.infer("arithmetic", inputs), inputs)
        assert len(registered(server)) == 1
        # The name is gone already while the client lives: being killed leaves nothing.
        assert named(os.getpid()) == []
        larger = rows(3, count=3)
        check(client.infer("arithmetic", larger), larger)


def test_of_any_memory_layout(server: RunningServer) -> None:
    inputs = {name: array[::2, ::-1] for name, array in rows(0, count=4).items()}
    with Client(server.url) as client:
        check(client.infer("arithmetic", inputs), inputs)
        assert len(registered(server)) == 1


def test_small_inputs_stay_in_the_message(server: RunningServer) -> None:
    inputs = rows(0, length=LARGE - 1)
    with Client(server.url) as client:
        check(client.infer("arithmetic", inputs), inputs)
        assert registered(server) == []


def test_requests_at_the_same_time_do_not_share(server: RunningServer) -> None:
    requests = [rows(seed) for seed in range(16)]
    with Client(server.url) as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda r: client.infer("arithmetic", r), requests))
        assert 1 <= len(registered(server)) <= 8
    for answer, inputs in zip(answers, requests, strict=True):
        check(answer, inputs)


def test_in_asyncio_too(server: RunningServer) -> None:
    async def ask() -> None:
        requests = [rows(seed) for seed in range(16)]
        async with AsyncClient(server.url) as client:
            answers = await asyncio.gather(*(client.infer("arithmetic", r) for r in requests))
            assert registered(server)
        for answer, inputs in zip(answers, requests, strict=True):
            check(answer, inputs)

    asyncio.run(ask())


def test_a_failed_request_gives_its_region_back(server: RunningServer) -> None:
    with Client(server.url) as client:
        inputs = rows(0)
        client.infer("arithmetic", inputs)
        with pytest.raises(UserError, match="broadcast"):
            client.infer("arithmetic", {"a": inputs["a"], "b": inputs["b"][:, 1:]})
        client.infer("arithmetic", inputs)
        assert len(registered(server)) == 1


def test_a_region_that_the_server_still_reads_is_given_back_when_it_has_read(
    server: RunningServer,
) -> None:
    size = LARGE * 4
    client = Client(server.url)
    client.infer("arithmetic", rows(0))
    (region,) = registered(server)
    turns = triton.InferInput("turns", [1, 1], "INT64")
    turns.set_data_from_numpy(np.array([[1000]]))
    inputs = [turns]
    for name in "ab":
        shared = triton.InferInput(name, [1, LARGE], "FP32")
        shared.set_shared_memory(region, size)
        inputs.append(shared)
    over = threading.Event()
    with triton.InferenceServerClient(server.url) as raw:
        raw.async_infer("slow_sum", inputs, lambda **_: over.set(), headers=management(server.url))
        time.sleep(0.05)  # Triton has it by now; if not, nothing is refused below
        client.close()
        assert over.wait(120)


def test_a_server_that_lost_the_region_is_sent_the_message_instead(server: RunningServer) -> None:
    with Client(server.url) as client:
        inputs = rows(0)
        client.infer("arithmetic", inputs)
        with triton.InferenceServerClient(server.url) as raw:
            raw.unregister_system_shared_memory(
                registered(server)[0], headers=management(server.url)
            )
        check(client.infer("arithmetic", inputs), inputs)
        check(client.infer("arithmetic", inputs), inputs)
        assert len(registered(server)) == 1


def test_what_a_killed_client_left_is_removed_by_the_next(server: RunningServer) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        import numpy as np
        from bilateral_serving.client import Client
        row = np.ones((1, {LARGE}), np.float32)
        client = Client("{server.url}")
        client.infer("arithmetic", {{"a": row, "b": row}})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script]) as killed:
        pass
    assert killed.returncode == -signal.SIGKILL
    (left,) = registered(server)
    assert named(killed.pid) == []
    with Client(server.url) as client:
        client.infer("arithmetic", rows(0))
        assert left not in registered(server)
        # A region of a living client stays.
        with Client(server.url) as other:
            other.infer("arithmetic", rows(0))
            assert len(registered(server)) == 2


def test_a_server_that_cannot_map_it_gets_the_message_and_one_line_says_so(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on another machine: the name means nothing to the server."""
    monkeypatch.setattr(shared_memory, "_KEY_PREFIX", "/elsewhere-")
    inputs = rows(0)
    with caplog.at_level(logging.WARNING), Client(server.url, shared_memory=True) as client:
        for _ in range(2):
            check(client.infer("arithmetic", inputs), inputs)
    assert [record.getMessage() for record in caplog.records] == [
        f"no shared memory with {server.url} ({caplog.records[0].args[1]}): inputs go through gRPC"  # type: ignore[index]
    ]
    caplog.clear()
    with Client(server.url) as client:
        check(client.infer("arithmetic", inputs), inputs)
    assert caplog.records == []


def test_no_room(server: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_memory, "_DIRECTORY", tmp_path / "missing")
    inputs = rows(0)
    with Client(server.url) as client:
        check(client.infer("arithmetic", inputs), inputs)
        assert registered(server) == []


def test_not_wanted(server: RunningServer) -> None:
    inputs = rows(0)
    with Client(server.url, shared_memory=False) as client:
        check(client.infer("arithmetic", inputs), inputs)
        assert registered(server) == []


def test_it_is_tried_by_itself_on_a_loopback_address_only() -> None:
    assert all(map(is_loopback, ["localhost:8001", "127.0.0.1:1", "127.1.2.3:9", "[::1]:8001"]))
    assert not any(
        map(
            is_loopback,
            ["10.0.0.1:8001", "example.org:127", "localhost.org:1", "127.example.org:1"],
        )
    )


def test_layout_leaves_out_what_has_another_form_on_the_way() -> None:
    specs = [
        TensorSpec("text", "object", ("n",)),
        TensorSpec("image", "float32", ("n",)),
        TensorSpec("mask", "uint8", ("n",)),
        TensorSpec("short", "int64", ("n",)),
    ]
    arrays = {
        "text": np.array([b"x"] * LEAST_BYTES, dtype=object),
        "image": np.zeros(LARGE + 1, np.float32),
        "mask": np.zeros(LEAST_BYTES, np.uint8),
        "short": np.zeros(3, np.int64),
    }
    offsets, size = layout(specs, arrays)
    assert offsets == {"image": 0, "mask": LEAST_BYTES + 64}
    assert size == 2 * LEAST_BYTES + 64
    region = Region(size)
    assert region.size >= size
    region.close()
