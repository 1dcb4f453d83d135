"""Callers that take no answers, or take them a byte at a time, and callers that vanish."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.front_door.streams_that_are_killed import has_begun, start_writers
from tests.serving.under_load.confined import Confined
from tests.serving.under_load.steady_caller import SteadyCaller

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
    assert account.longest_s < 10
    assert confined.server.lines_so_far() == []


def test_readers_of_a_byte_a_second_hold_up_nobody(
    confined: Confined, caller: SteadyCaller
) -> None:
    hold(confined, caller, 1.5)


@pytest.mark.slow
def test_readers_of_a_byte_a_second_for_two_minutes(
    confined: Confined, caller: SteadyCaller
) -> None:
    hold(confined, caller, 120)


@pytest.mark.slow
def test_streams_whose_readers_are_stopped_or_vanish(
    confined: Confined, caller: SteadyCaller
) -> None:
    """They fill no memory of the front door, and hold up nobody else."""
    writers = start_writers(confined.url, 4)
    assert all(map(has_begun, writers))
    for writer in writers:
        os.kill(writer.pid, signal.SIGSTOP)
    time.sleep(5)
    doors = confined.server.door(), confined.server.server()
    before = [resident(pid) for pid in doors]
    time.sleep(20)
    door, triton = (resident(pid) - old for pid, old in zip(doors, before, strict=True))
    for writer in writers:
        writer.kill()
        writer.wait()
    caller.wait_for(100)
    account = caller.finish()
    # Triton 2.51 keeps what it has generated until it is read, as fast as the model writes.
    print(
        f"\n4 stopped readers of endless streams: front door {door:+.1f} MiB,"
        f" tritonserver {triton:+.1f} MiB in 20 s; {account}"
    )
    assert door < 16
    assert (account.wrong, account.failed) == (0, [])
    assert confined.server.lines_so_far() == []
