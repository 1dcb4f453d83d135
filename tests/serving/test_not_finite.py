"""Answers that are not numbers: an error of their own request, and counted."""

from __future__ import annotations

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from bilateral_serving.server import RunningServer


def ask(server: RunningServer, value: float) -> float:
    with triton.InferenceServerClient(server.url) as raw:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.float32([[value]]))
        return float(raw.infer("reciprocal", [tensor]).as_numpy("y")[0, 0])


def counted(server: RunningServer) -> float:
    assert server.metrics_url is not None
    with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
        rows = re.findall(
            r"^bilateral_not_finite_total\{[^}]*\} (\S+)$",
            page.read().decode(),
            re.MULTILINE,
        )
    return sum(map(float, rows))


def test_is_an_error_of_its_own_request_only_and_counted(server: RunningServer) -> None:
    before = counted(server)
    values = [2.0, 1.0, 3.0, 5.0, 1.0, 9.0]  # one batch, or several: 1 / (1 - 1) is infinite
    with ThreadPoolExecutor(len(values)) as pool:
        answers = [(value, pool.submit(ask, server, value)) for value in values]
    for value, answer in answers:
        if value != 1:
            assert answer.result() == 1 / (value - 1)
        else:
            with pytest.raises(InferenceServerException, match=r"'y' is not finite: .* in 1 of"):
                answer.result()
    assert counted(server) - before == 2


def test_is_passed_on_where_the_input_is_not_finite_either_and_counted(
    server: RunningServer,
) -> None:
    before = counted(server)
    assert np.isnan(ask(server, np.nan))
    assert counted(server) - before == 1


def test_zeros_are_exempt_because_warm_up_sends_them(server: RunningServer) -> None:
    """A model whose warm-up failed would not be served: `zero_over_zero` is."""
    before = counted(server)
    with triton.InferenceServerClient(server.url) as raw:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.float32([[0]]))
        assert np.isnan(raw.infer("zero_over_zero", [tensor]).as_numpy("y")).all()
    assert counted(server) == before
