"""What two looks at a metrics page say, against numpy and against a real server."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import tiny_models as models
from tests.builders.waiting import eventually
from tests.serving.server.live_processes import free_ports

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.config import Settings
from bilateral_serving.server import RunningServer, ServerOptions, running
from bilateral_serving.watching import Row, View, page, parse, scrape, view
from bilateral_serving.watching.view import quantile

ENDS = (0.001, 0.01, 0.1, 1.0, math.inf)


def cumulative(values: list[float]) -> dict[float, float]:
    return {end: float(sum(value <= end for value in values)) for end in ENDS}


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(values: list[float], q: float) -> None:
    found = quantile(q, cumulative(values))
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    assert found is not None
    end = next(end for end in ENDS if exact <= end)
    start = max((e for e in ENDS if e < end), default=0.0)
    assert start <= found <= end + 1e-12


def test_a_quantile_beyond_the_last_end_is_that_end_and_of_nothing_is_nothing() -> None:
    assert quantile(0.5, cumulative([5.0, 6.0])) == 1.0
    assert quantile(0.5, dict.fromkeys(ENDS, 0.0)) is None
    assert quantile(0.5, {}) is None


PAGE = """# TYPE nv_inference_request_success counter
nv_inference_request_success{model="m",version="1"} %d
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="m",version="1",reason="OTHER"} %d
# TYPE nv_inference_count counter
nv_inference_count{model="m",version="1"} %d
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="m",version="1"} %d
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="m",version="1"} %d
"""


def test_rates_are_of_the_time_between_and_survive_a_restart() -> None:
    before, after = (
        parse(PAGE % (100, 1, 400, 100, 50_000)),
        parse(PAGE % (110, 3, 440, 120, 70_000)),
    )
    (row,) = view(before, after).rows
    seconds = after.time_s - before.time_s
    assert row.rate * seconds == pytest.approx(12)
    assert row.failed * seconds == pytest.approx(2)
    assert (row.batch, row.queue_ms) == (2.0, 2.0)
    (again,) = view(after, parse(PAGE % (5, 0, 5, 5, 0))).rows
    assert again.rate > 0


DURATIONS = "# TYPE bilateral_call_duration_seconds histogram\n" + "".join(
    f'bilateral_call_duration_seconds_bucket{{model="m",le="{end}"}} %d\n'
    for end in ("0.1", "1.0", "+Inf")
)


def test_percentiles_survive_a_restart() -> None:
    before = parse(PAGE % (100, 0, 100, 100, 0) + DURATIONS % (90, 100, 100))
    (row,) = view(before, parse(PAGE % (8, 0, 8, 8, 0) + DURATIONS % (8, 8, 8))).rows
    assert row.p50_ms == pytest.approx(50)


def test_names_from_outside_are_never_markup() -> None:
    row = Row(
        model="<script>[red]x", version="1", rate=1, failed=1, waiting=0, queue_ms=None,
        p50_ms=None, p99_ms=None, batch=None, sha256="", parity="<b>",
    )  # fmt: skip
    found = View(seconds=1, is_up=True, under_way=0, server="", rows=(row,))
    text = page(found, "http://x/<i>", "now")
    assert "<script>" not in text
    assert "&lt;script&gt;[red]x" in text
    assert not re.search(r"(?:src|href)=|url\(|@import", text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("watching")
    one = Settings(threads=1)
    repository.add("m", models.quadrants(root / "m.onnx"), root / "models", settings=one)
    grpc, metrics = free_ports(2)
    options = ServerOptions(root / "models", grpc_port=grpc, http_port=None, metrics_port=metrics)
    with running(options) as ready:
        yield ready


def test_a_real_server_is_counted_right(server: RunningServer) -> None:
    assert server.metrics_url is not None
    before = scrape(server.metrics_url)
    with Client(server.url) as client:
        (spec,) = client.model_metadata("m").inputs
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in spec.shape]
        for _ in range(20):
            client.infer("m", {spec.name: np.zeros(shape, np.float32)})

    def counted() -> View | None:
        seen = view(before, scrape(str(server.metrics_url)))
        return seen if round(seen.rows[0].rate * seen.seconds) >= 20 else None

    found = eventually(counted)  # Triton counts a request after its answer
    assert found is not None
    (row,) = found.rows
    assert round(row.rate * found.seconds) == 20
    assert (row.model, row.version, row.failed, row.batch) == ("m", "1", 0.0, 1.0)
    assert found.is_up
    assert row.p50_ms is not None
    assert row.p99_ms is not None
    assert 0 < row.p50_ms <= row.p99_ms
    assert len(row.sha256) == 64


def test_what_is_no_metrics_page_is_one_line(server: RunningServer) -> None:
    with pytest.raises(UserError, match="no metrics at"):
        scrape("http://127.0.0.1:1/metrics")
    with pytest.raises(UserError, match="not the address"):
        scrape("file:///etc/passwd")
    with pytest.raises(UserError, match="no page of metrics"):
        parse("<!doctype html><html></html>")
    with pytest.raises(UserError, match="no page of metrics"):
        parse('bilateral_call_duration_seconds_bucket{model="m",le="soon"} 1\n')
    with pytest.raises(UserError, match="no metrics at"):  # gRPC answers no HTTP of that version
        scrape(f"http://{server.url}/metrics")
