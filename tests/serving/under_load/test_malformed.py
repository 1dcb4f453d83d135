"""Malformed requests over gRPC and HTTP, beside a caller who notices none of them."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import grpc
import pytest
import urllib3
from tests.serving.front_door.door import OWN_CONNECTION
from tests.serving.under_load.confined import Confined
from tests.serving.under_load.malformed import Malformed
from tests.serving.under_load.steady_caller import PATIENCE_S, SteadyCaller

MANY = int(os.environ.get("BILATERAL_MALFORMED", "10000"))
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# What a server says of a request that it did not expect: nothing here may come from a fault of its.
FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED", "DATA_LOSS"}


def over_grpc(confined: Confined, count: int, seed: int) -> Counter[str]:
    codes: Counter[str] = Counter()
    malformed = Malformed(random.Random(seed))
    options = [*OWN_CONNECTION, ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(confined.url, options) as channel:
        infer, stream = channel.unary_unary(INFER), channel.stream_stream(STREAM)
        for number in range(count):
            message = malformed.message_bytes()
            try:
                if number % 5:
                    infer(message, timeout=PATIENCE_S)
                else:
                    list(stream(iter([message]), timeout=PATIENCE_S))
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
    return codes


def over_http(confined: Confined, count: int, seed: int) -> Counter[str]:
    codes: Counter[str] = Counter()
    malformed = Malformed(random.Random(seed))
    pool = urllib3.HTTPConnectionPool("127.0.0.1", confined.http_port, maxsize=1)
    for _ in range(count):
        path, body, headers = malformed.http()
        try:
            answer = pool.request(
                "POST", path, body=body, headers=headers, timeout=PATIENCE_S, retries=False
            )
            codes[str(answer.status)] += 1
        except urllib3.exceptions.HTTPError as error:
            codes[type(error).__name__] += 1
    return codes


def hold(confined: Confined, caller: SteadyCaller, count: int, seed: int) -> None:
    triton = confined.server.server()
    began = time.monotonic()
    grpc_codes = over_grpc(confined, count // 2, seed)
    http_codes = over_http(confined, count // 2, seed)
    took = time.monotonic() - began
    account = caller.finish()
    print(f"\n{count} in {took:.0f} s: {dict(grpc_codes)}, {dict(http_codes)}; caller: {account}")
    assert (account.wrong, account.failed) == (0, [])
    assert confined.server.lines_so_far() == []
    assert confined.server.server() == triton
    assert not FAULTS & set(grpc_codes)
    assert all(code.isdecimal() for code in http_codes)


@pytest.mark.parametrize("name", ["shape", "sh\\u0061pe"])
@pytest.mark.parametrize("shape", ["[9, 9, 9, 2147483648]", f"[{'1, ' * 70}4611686018427387904]"])
def test_a_shape_that_triton_makes_room_for_and_dies_of_is_refused(
    confined: Confined, caller: SteadyCaller, name: str, shape: str
) -> None:
    body = (
        f'{{"inputs": [{{"name": "pixel_values", "datatype": "FP32", "{name}": {shape},'
        ' "data": [1]}]}'
    )
    url = f"http://127.0.0.1:{confined.http_port}/v2/models/quadrants/infer"
    answer = urllib3.request("POST", url, body=body, timeout=PATIENCE_S, retries=False)
    assert (answer.status, b"elements in a body of" in answer.data) == (400, True), answer.data
    assert caller.finish().failed == []
    assert confined.server.lines_so_far() == []


def test_some_hurt_nobody(confined: Confined, caller: SteadyCaller) -> None:
    hold(confined, caller, 200, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_hurt_nobody(confined: Confined, caller: SteadyCaller) -> None:
    hold(confined, caller, MANY, seed=2)
