"""Answers that are not numbers are counted."""

from __future__ import annotations

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as triton
from tests.builders.waiting import eventually

from bilateral_serving.server import RunningServer


def ask(server: RunningServer, value: float) -> float:
    with triton.InferenceServerClient(server.url) as raw:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.float32([[value]]))
        return float(raw.infer("reciprocal", [tensor]).as_numpy("y")[0, 0])


def counted(server: RunningServer) -> float:
    assert server.metrics_url is not None
    with urllib.request.urlopen(server.metrics_url, timeout=60) as page:
        rows = re.findall(
            r"^bilateral_not_finite_total\{[^}]*\} (\S+)$",
            page.read().decode(),
            re.MULTILINE,
        )
    return sum(map(float, rows))


def test_is_counted_for_its_own_request_only(server: RunningServer) -> None:
    before = counted(server)
    values = [2.0, 1.0, 3.0, 5.0, 1.0, 9.0]  # one batch, or several: 1 / (1 - 1) is infinite
    with ThreadPoolExecutor(len(values)) as pool:
        answers = list(pool.map(lambda value: ask(server, value), values))
    assert answers == [1.0, np.inf, 0.5, 0.25, np.inf, 0.125]
    eventually(lambda: counted(server) >= before + 2)
    assert counted(server) - before == 2
