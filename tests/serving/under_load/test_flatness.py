"""Memory, files and /dev/shm under mixed load for twenty minutes (`BILATERAL_FLAT_S` seconds)."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import urllib3
from tests.serving.front_door.door import OWN_CONNECTION, request
from tests.serving.under_load.confined import Confined
from tests.serving.under_load.resources import Watcher
from tests.serving.under_load.steady_caller import SteadyCaller
from tritonclient.grpc import service_pb2_grpc

from bilateral_serving import language

SECONDS = float(os.environ.get("BILATERAL_FLAT_S", "1200"))
RATE = 50.0
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Strangers:
    """One of everything that callers do, each on a connection of its own."""

    def __init__(self, server: Confined) -> None:
        self._server, self._chance = server, random.Random(0)
        self._http = urllib3.PoolManager(maxsize=1)
        self.count: Counter[str] = Counter()
        self._kinds: tuple[Callable[[], None], ...] = (
            self.ask_over_http,
            self.ask_for_much,
            self.send_nonsense,
            self.leave_a_call,
            self.leave_a_stream,
            self.break_off_a_body,
        )

    def do_one(self) -> None:
        kind = self._chance.choice(self._kinds)
        self.count[kind.__name__] += 1
        with contextlib.suppress(OSError, grpc.RpcError, urllib3.exceptions.HTTPError):
            kind()

    def ask_over_http(self) -> None:
        tensor = {"name": "pixel_values", "datatype": "FP32", "shape": [1, 1, 2, 2]}
        body = {"inputs": [{**tensor, "data": [1.0, 2.0, 3.0, 4.0]}]}
        url = f"http://127.0.0.1:{self._server.http_port}/v2/models/quadrants/infer"
        answer = self._http.request("POST", url, json=body, timeout=30)
        assert answer.json()["outputs"][0]["data"] == [8.0, 16.0, 24.0, 32.0]

    def ask_for_much(self) -> None:
        with self._channel() as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(request("wide", x=np.ones((1, 1), np.float32)), timeout=30)

    def send_nonsense(self) -> None:
        with self._channel() as channel:
            call = channel.unary_unary(INFER)
            call.future(self._chance.randbytes(100), timeout=30).exception()

    def leave_a_call(self) -> None:
        with self._channel() as channel:
            message = request("slow", turns=np.array([[20]])).SerializeToString()
            channel.unary_unary(INFER).future(message, timeout=0.003).exception()

    def leave_a_stream(self) -> None:
        endless = language.sampling(max_tokens=10_000_000)
        message = language.to_request("words", "", f"{time.time_ns()}", "word", endless)
        with self._channel() as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answers = stub.ModelStreamInfer(iter([message]), timeout=5)
            next(answers)
            answers.cancel()

    def break_off_a_body(self) -> None:
        address = ("127.0.0.1", self._server.http_port)
        with socket.create_connection(address, timeout=5) as connection:
            head = "POST /v2/models/quadrants/infer HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())

    def _channel(self) -> grpc.Channel:
        options = [*OWN_CONNECTION, ("grpc.max_receive_message_length", -1)]
        return grpc.insecure_channel(self._server.url, options=options)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_nothing_grows(tmp_path: Path) -> None:
    server = Confined(tmp_path)
    caller = SteadyCaller(server.url, pause_s=1 / RATE)
    strangers, watcher = Strangers(server), Watcher(server, every_s=min(5.0, SECONDS / 100))
    over = threading.Event()

    def trouble() -> None:
        while not over.wait(4 / RATE):
            strangers.do_one()

    troubling = threading.Thread(target=trouble, daemon=True)
    for thread in (caller, troubling, watcher):
        thread.start()
    time.sleep(SECONDS)
    slopes = watcher.finish(after_s=SECONDS / 4)
    over.set()
    troubling.join(60)
    account = caller.finish()
    print(f"\n{account}; {dict(strangers.count)}; {server.server.lines_so_far()}")
    for (name, what), found in slopes.items():
        print(f"| {name} | {what} | {found} |")
    server.end()
    assert (account.wrong, account.failed) == (0, [])
    # By more than an allocator's rest: 12 MiB an hour are 50 bytes a call.
    most = {"files": 1.0}
    growing = {
        key: str(found)
        for key, found in slopes.items()
        if found.is_more_than(most.get(key[1], 12.0))
    }
    assert growing == {}
