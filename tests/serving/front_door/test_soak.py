"""A well-behaved caller beside strangers who do everything that ends Triton 2.51, for a while.

`BILATERAL_SOAK_S` says how many seconds; the figures of three minutes are in
`benchmarks/results/front_door.md`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.serving.front_door.door import Door, front_door, request
from tests.serving.front_door.streams_that_are_killed import has_begun, start_writers

from bilateral_serving import repository
from bilateral_serving.config import Settings

SECONDS = float(os.environ.get("BILATERAL_SOAK_S", "60"))

# 32 threads, each with a connection of its own; the model is busy all the time.
FLOOD = """
import sys, threading, time
import grpc
message, end = sys.stdin.buffer.read(), time.monotonic() + float(sys.argv[2])
codes = {}
def call_on():
    with grpc.insecure_channel(sys.argv[1], [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while time.monotonic() < end:
            code = call.future(message, timeout=0.03).code().name
            codes[code] = codes.get(code, 0) + 1
threads = [threading.Thread(target=call_on) for _ in range(32)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(codes)
"""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    one = Settings(threads=1)
    served = tmp_path / "models"
    repository.add("quadrants", models.quadrants(tmp_path / "q.onnx"), served, settings=one)
    alone = Settings(threads=1, max_batch_size=1)
    repository.add("slow", models.slow(tmp_path / "s.onnx"), served, settings=alone)
    endless = models.words(tmp_path / "w.onnx", likely=(0, 0, 1))
    stream = Settings(threads=1, stream=True)
    repository.add("words", endless, served, settings=stream)
    with front_door(served, http=True) as started:
        yield started


def kill_streams(door: Door, count: Counter[str]) -> None:
    writers = start_writers(door.url, 2)
    for writer in writers:
        begun = has_begun(writer)
        count["streams whose client was killed" if begun else "streams without a word"] += 1
    for writer in writers:
        writer.kill()
        writer.wait()
    time.sleep(0.5)


def send_garbage(door: Door, count: Counter[str], chance: np.random.Generator) -> None:
    head = b"POST /v2/models/quadrants/infer HTTP/1.1\r\nHost: localhost\r\n"
    deep = b"[" * 200_000
    bodies = (
        head + b"Content-Length: 200000\r\n\r\n" + deep,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 10_000,
        head + b"Content-Length: 100\r\nContent-Encoding: gzip\r\n\r\n" + chance.bytes(100),
        head + b"Origin: http://example.org\r\nContent-Length: 2\r\n\r\n{}",
        head + b"Content-Length: 1000\r\n\r\n" + chance.bytes(10),  # and no more
        chance.bytes(1000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.bytes(1000),
    )
    for url in (door.http_url or "", door.url):
        host, _, port = url.rpartition(":")
        for body in bodies:
            with (
                contextlib.suppress(OSError),  # it is closed before all was sent
                socket.create_connection((host, int(port)), timeout=5) as connection,
            ):
                connection.sendall(body)
                connection.settimeout(0.2)
                connection.recv(100)
            count["garbage"] += 1
    time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_a_patient_caller_loses_nothing_beside_strangers(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    end, triton = time.monotonic() + SECONDS, door.triton.pid
    count: Counter[str] = Counter()
    chance = np.random.default_rng(0)

    def until_the_end(do: Callable[[], None]) -> None:
        while time.monotonic() < end:
            do()

    flood = subprocess.Popen(
        [sys.executable, "-c", FLOOD, door.url, str(SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert flood.stdin is not None
    flood.stdin.write(request("slow", turns=np.array([[30]])).SerializeToString())
    flood.stdin.close()
    took: list[float] = []
    with door.stub() as stub, ThreadPoolExecutor(2) as strangers:
        others = [
            strangers.submit(until_the_end, lambda: kill_streams(door, count)),
            strangers.submit(
                until_the_end, lambda: send_garbage(door, count, np.random.default_rng(1))
            ),
        ]
        while time.monotonic() < end:
            image = chance.normal(size=(1, 1, 2, 2)).astype(np.float32)
            began = time.monotonic()
            try:
                answer = stub.ModelInfer(request("quadrants", pixel_values=image), timeout=30)
            except grpc.RpcError as error:
                count[f"lost: {error.code()} {error.details()}"] += 1
                continue
            took.append(time.monotonic() - began)
            if answer.raw_output_contents[0] != (8 * image.reshape(1, 4)).tobytes():
                count["wrong"] += 1
    assert flood.stdout is not None
    flooded = flood.stdout.read().decode().strip()
    flood.wait()
    median, late = 1e3 * np.percentile(took, [50, 99])
    with capsys.disabled():
        print(
            f"\n{SECONDS:g} s: {len(took)} requests answered (p50 {median:.1f} ms, p99 {late:.1f} "
            f"ms), {dict(count)}, the flood: {flooded}"
        )
    for other in others:
        other.result()
    assert not [name for name in count if name.startswith("lost") or name == "wrong"]
    assert len(took) > SECONDS
    assert count["garbage"] > 0
    assert count["streams whose client was killed"] > 0
    assert (door.triton.pid, door.triton.poll(), door.process.poll()) == (triton, None, None)
