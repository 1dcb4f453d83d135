"""Callers that take no answers, or take them a byte at a time, and callers that vanish."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.serving.front_door.door import OWN_CONNECTION
from tests.serving.front_door.streams_that_are_killed import ENDLESS, has_begun, start_writers
from tests.serving.under_load.confined import Confined
from tests.serving.under_load.steady_caller import SteadyCaller
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_serving import language
from bilateral_serving.process_status import read_status

READERS, MIB = 8, 1 << 20


def resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / MIB


def ask_for_four_megabytes(confined: Confined) -> socket.socket:
    """Ask over HTTP with a small window, and read nothing yet."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", confined.http_port))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    body = json.dumps({"inputs": [tensor], "outputs": outputs})
    head = f"POST /v2/models/wide/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    connection.sendall(f"{head}\r\n\r\n{body}".encode())
    return connection


@contextlib.contextmanager
def slow_readers(confined: Confined) -> Iterator[list[socket.socket]]:
    readers = [ask_for_four_megabytes(confined) for _ in range(READERS)]
    try:
        yield readers
    finally:
        for reader in readers:
            reader.close()


def hold(confined: Confined, caller: SteadyCaller, seconds: float) -> None:
    door = confined.server.door()
    with slow_readers(confined) as readers:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for reader in readers:
                assert len(reader.recv(1)) == 1
            time.sleep(1.0)
        before = resident(door)
        caller.wait_for(100)
        # An answer that is written once is kept until it is read; nothing else piles up.
        assert resident(door) - before < 16
    account = caller.finish()
    print(f"\n{READERS} readers of a byte a second for {seconds:g} s: {account}")
    assert (account.wrong, account.failed) == (0, [])
    assert confined.server.lines_so_far() == []


def test_readers_of_a_byte_a_second_hold_up_nobody(
    confined: Confined, caller: SteadyCaller
) -> None:
    hold(confined, caller, 1.5)


def wait_until_idle(process: int, patience_s: float = 60.0) -> None:
    """Return when a process has done next to nothing for two seconds."""
    end, quiet = time.monotonic() + patience_s, 0
    while quiet < 2:
        assert time.monotonic() < end, "it goes on working"
        before = read_status(process)
        time.sleep(1.0)
        after = read_status(process)
        assert before is not None
        assert after is not None
        quiet = quiet + 1 if after.cpu_s - before.cpu_s < 0.05 else 0


def test_a_stream_that_is_not_read_ends_with_a_reason(
    confined: Confined, caller: SteadyCaller
) -> None:
    """Its model stops, while what was sent until then can still be read."""
    model = confined.server.model("words")
    window = [*OWN_CONNECTION, ("grpc.http2.bdp_probe", 0)]  # 64 KiB, whatever the line could do
    over = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield language.to_request("words", "", "unread", "word", ENDLESS)
        over.wait(300)

    with grpc.insecure_channel(confined.url, options=window) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(requests(), timeout=300)
        next(answers)
        while answers.is_active():
            wait_until_idle(model)
            with contextlib.suppress(grpc.RpcError):
                # More than a window of 64 KiB and what may wait at the front door.
                assert len(list(itertools.islice(answers, 5000))) == 5000
        over.set()
        assert answers.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "read too slowly" in answers.details()
        few = language.to_request("words", "", "read", "word", language.sampling(max_tokens=3))
        assert not any(a.error_message for a in stub.ModelStreamInfer(iter([few]), timeout=60))
    account = caller.finish()
    assert (account.wrong, account.failed) == (0, [])
    assert confined.server.lines_so_far() == []


@pytest.mark.slow
def test_readers_of_a_byte_a_second_for_two_minutes(
    confined: Confined, caller: SteadyCaller
) -> None:
    hold(confined, caller, 120)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_streams_whose_readers_are_stopped_or_vanish(
    confined: Confined, caller: SteadyCaller
) -> None:
    """They fill no memory for long, and hold up nobody else."""
    writers = start_writers(confined.url, 4)
    assert all(map(has_begun, writers))
    processes = confined.server.door(), confined.server.server()
    before = [resident(pid) for pid in processes]
    for writer in writers:
        os.kill(writer.pid, signal.SIGSTOP)
    began = time.monotonic()
    wait_until_idle(confined.server.model("words"), 240)
    ended_s = time.monotonic() - began
    until = [resident(pid) for pid in processes]
    time.sleep(20)
    after = [resident(pid) for pid in processes]
    for writer in writers:
        writer.kill()
        writer.wait()
    caller.wait_for(100)
    account = caller.finish()
    door, triton = (new - old for new, old in zip(until, before, strict=True))
    print(
        f"\n4 stopped readers of endless streams, ended within {ended_s:.0f} s: front door"
        f" {door:+.1f} MiB, tritonserver {triton:+.1f} MiB; {account}"
    )
    assert door < 16
    assert [new - old < 16 for new, old in zip(after, until, strict=True)] == [True, True]
    assert (account.wrong, account.failed) == (0, [])
    assert confined.server.lines_so_far() == []
