"""What `bilateral serve` shows to whoever watches it, and how it ends."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.builders.parity_report import written
from tests.serving.front_door.door import OWN_CONNECTION, request
from tests.serving.server.live_processes import free_ports
from tests.serving.server.otlp_receiver import receiving
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_export.errors import UserError
from bilateral_export.files import sha256
from bilateral_export.parity.report.document import read_report
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.front_door.calls import DRAINING
from bilateral_serving.front_door.metrics import BUCKETS_S
from bilateral_serving.process_status import children
from bilateral_serving.server import ServerOptions, serve

PATIENCE_S = 60.0
ROOT = Path(__file__).parents[3]
QUADRANT = np.zeros((1, 1, 2, 2), dtype=np.float32)
BRIGHT = QUADRANT.copy()
BRIGHT[0, 0, 1, 0] = 1.0


@dataclass
class Watched:
    """`bilateral serve` in a process of its own, with everything that shows how it is."""

    process: subprocess.Popen[str]
    url: str
    http: str
    metrics: str
    ready_file: Path
    access_log: Path
    model_file: Path

    def calls(self) -> list[dict[str, Any]]:
        """The access log so far, as far as its lines are whole; each has to be JSON."""
        whole = self.access_log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def inferences(self) -> list[dict[str, Any]]:
        return [
            call
            for call in self.calls()
            if call["method"].endswith("infer") or call["method"].endswith("ModelInfer")
        ]

    @contextlib.contextmanager
    def stub(self) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
        with grpc.insecure_channel(self.url, options=OWN_CONNECTION) as channel:
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def page(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as page:
            return page.read().decode()


def eventually(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def served(root: Path, **flags: object) -> Iterator[Watched]:
    grpc_port, http, metrics = free_ports(3)
    model_file = models.quadrants(root / "q.onnx")
    verdict = read_report(written(root / "parity.json", judged=sha256(model_file)))
    one = Settings(threads=1)
    repository.add("quadrants", model_file, root / "models", settings=one, parity=verdict)
    alone = Settings(max_batch_size=1, threads=1)
    repository.add("slow", models.slow(root / "s.onnx"), root / "models", settings=alone)
    ports = {"grpc-port": grpc_port, "http-port": http, "metrics-port": metrics}
    files = {"ready-file": root / "ready", "access-log": root / "access.jsonl"}
    options = {"repository": root / "models", "log-format": "json", **ports, **files, **flags}
    process = subprocess.Popen(
        [sys.executable, "-m", "bilateral_cli", "serve"]
        + [f"--{name}={value}" for name, value in options.items()],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: (root / "ready").exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield Watched(
            process,
            f"127.0.0.1:{grpc_port}",
            f"127.0.0.1:{http}",
            f"127.0.0.1:{metrics}",
            root / "ready",
            root / "access.jsonl",
            model_file,
        )
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[str, list]]:
    with receiving() as received:
        yield received


@pytest.fixture(scope="module")
def watched(spans: tuple[str, list], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with served(tmp_path_factory.mktemp("watched"), otlp=spans[0]) as server:
        yield server


def test_the_readiness_file_names_who_serves(watched: Watched) -> None:
    assert watched.ready_file.read_text() == f"{watched.process.pid}\n"


def test_each_call_is_one_line_of_json(watched: Watched) -> None:
    before = len(watched.inferences())
    message = request("quadrants", pixel_values=BRIGHT)
    message.id = "mine"
    with watched.stub() as stub:
        stub.ModelInfer(message)
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(request("nobody", pixel_values=BRIGHT))
    body = {
        "id": "over-http",
        "inputs": [
            {
                "name": "pixel_values",
                "shape": [1, 1, 2, 2],
                "datatype": "FP32",
                "data": [0, 1, 0, 0],
            }
        ],
    }
    url = f"http://{watched.http}/v2/models/quadrants/infer"
    urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60).close()
    eventually(lambda: len(watched.inferences()) >= before + 3)
    ours, nobodys, https = watched.inferences()[before:]
    sha = hashlib.sha256(watched.model_file.read_bytes()).hexdigest()
    for line, name, status in ((ours, "mine", "OK"), (https, "over-http", "200")):
        assert (line["id"], line["status"]) == (name, status)
        assert (line["model"], line["version"], line["sha256"]) == ("quadrants", "1", sha)
        assert 0 <= line["waited_ms"] < line["total_ms"]
        assert 0 < line["triton_ms"] <= line["total_ms"]
        assert "127.0.0.1" in line["peer"]
    assert (nobodys["model"], nobodys["status"], nobodys["sha256"]) == ("nobody", "NOT_FOUND", None)


def test_a_renamed_access_log_is_made_anew(watched: Watched, tmp_path: Path) -> None:
    old = watched.access_log.rename(watched.access_log.with_suffix(".1"))
    with watched.stub() as stub:
        stub.ModelInfer(request("quadrants", pixel_values=BRIGHT))
    eventually(watched.access_log.exists)
    eventually(watched.inferences)
    watched.access_log.write_bytes(old.read_bytes() + watched.access_log.read_bytes())


def test_a_trace_goes_from_the_caller_through_the_front_door_to_the_model(
    watched: Watched, spans: tuple[str, list]
) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with watched.stub() as stub:
        stub.ModelInfer(
            request("quadrants", pixel_values=BRIGHT),
            metadata=(("traceparent", f"00-{trace}-{parent}-01"),),
        )
    found = eventually(
        lambda: (mine := [s for s in spans[1] if s.trace_id.hex() == trace])[1:] and mine
    )
    (door,) = (span for span in found if span.parent_span_id.hex() == parent)
    (model,) = (span for span in found if span is not door)
    assert door.name == "inference.GRPCInferenceService/ModelInfer"
    assert model.name == "model quadrants"
    assert model.parent_span_id == door.span_id
    assert door.start_time_unix_nano <= model.start_time_unix_nano
    assert model.end_time_unix_nano <= door.end_time_unix_nano


def value(page: str, line: str) -> float:
    """The value of a line of the page, given by its beginning; 0 if there is none."""
    return sum(float(row.rpartition(" ")[2]) for row in page.splitlines() if row.startswith(line))


def answers(page: str) -> float:
    """How many callers the front door has given an answer of "quadrants"."""
    calls = 'bilateral_calls_total{protocol="%s",model="quadrants",status="%s"}'
    return value(page, calls % ("grpc", "OK")) + value(page, calls % ("http", "200"))


def settled(watched: Watched) -> str | None:
    """The page, if the model has told of all these answers, which it does twice a second."""
    page = watched.page()
    stage = 'bilateral_stage_duration_seconds_count{model="quadrants",stage="%s"'
    counts = {value(page, stage % name) for name in ("queue", "preprocess", "compute", "total")}
    rows = value(page, "bilateral_decisions_total{"), value(page, "bilateral_abstentions_total{")
    return page if counts | {sum(rows)} == {answers(page)} else None


def test_metrics_count_what_callers_asked_and_nothing_else(watched: Watched) -> None:
    """Warm-up and the supervisor's probes are not anybody's answers."""
    abstained = 'bilateral_abstentions_total{model="quadrants",version="1"}'
    bottom_left = 'bilateral_decisions_total{class="bottom left",model="quadrants",version="1"}'
    before = eventually(lambda: settled(watched))
    with watched.stub() as stub:
        for image in (BRIGHT, BRIGHT, QUADRANT):
            stub.ModelInfer(request("quadrants", pixel_values=image))
    wanted = answers(before) + 3
    eventually(lambda: (page := settled(watched)) and answers(page) == wanted)
    time.sleep(1.5)  # probes come about once a second
    page = eventually(lambda: settled(watched))
    assert answers(page) == wanted
    for name, more in ((bottom_left, 2), (abstained, 1)):
        assert value(page, name) - value(before, name) == more
    sha = hashlib.sha256(watched.model_file.read_bytes()).hexdigest()
    (info,) = (row for row in page.splitlines() if row.startswith('bilateral_model_info{model="q'))
    assert f'sha256="{sha}"' in info
    assert 'parity="passed"' in info
    (other,) = (row for row in page.splitlines() if row.startswith('bilateral_model_info{model="s'))
    assert 'parity="unknown"' in other
    assert "nv_inference_request_success" in page


def test_a_name_that_no_model_has_is_no_label(watched: Watched) -> None:
    with watched.stub() as stub, pytest.raises(grpc.RpcError):
        stub.ModelInfer(request('x"} 1', pixel_values=BRIGHT))
    counted = 'bilateral_calls_total{protocol="grpc",model="",status="NOT_FOUND"}'
    page = eventually(lambda: value(page := watched.page(), counted) and page)
    assert 'x"' not in page


def test_both_histograms_have_the_same_buckets() -> None:
    """The model's file stands alone, and says them again."""
    source = ROOT / "serving/bilateral_serving/python_backend/metrics.py"
    found = [
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "BUCKETS_S"
    ]
    assert found == [BUCKETS_S]


def promised_queries() -> list[str]:
    text = (ROOT / "serving" / "README.md").read_text()
    block = text.partition("```promql\n")[2].partition("```")[0]
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def test_prometheus_answers_the_queries_of_the_docs(watched: Watched, tmp_path: Path) -> None:
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    (port,) = free_ports(1)
    config = tmp_path / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [
                    {"job_name": "bilateral", "static_configs": [{"targets": [watched.metrics]}]}
                ],
            }
        )
    )
    server = subprocess.Popen(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(query: str) -> list[Any]:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), watched.stub() as stub:
            stub.ModelInfer(request("quadrants", pixel_values=BRIGHT))
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query}),
                timeout=60,
            ) as answer:
                found = json.load(answer)["data"]["result"]
                return [row for row in found if row["value"][1] != "NaN"]
        return []

    try:
        queries = promised_queries()
        assert len(queries) >= 5
        for query in queries:
            assert eventually(lambda query=query: ask(query)), query
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE_S)


def test_the_readiness_file_is_away_while_tritonserver_is(watched: Watched) -> None:
    (triton,) = (
        pid
        for pid, status in children(watched.process.pid).items()
        if any("tritonserver" in word for word in status.command)
    )
    before = watched.ready_file.stat().st_mtime_ns
    os.kill(triton, signal.SIGKILL)
    # Away and made anew; who looks seldom sees only that.
    eventually(
        lambda: not watched.ready_file.exists() or watched.ready_file.stat().st_mtime_ns != before
    )
    eventually(watched.ready_file.exists)
    with watched.stub() as stub:
        stub.ModelInfer(request("quadrants", pixel_values=BRIGHT))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"direct": True, "access_log": Path("log")}, "--access-log is the front door's"),
        ({"direct": True, "otlp": "http://localhost:1"}, "--otlp is the front door's"),
        ({"access_log": Path("/nowhere/log")}, "/nowhere/log does not exist"),
        ({"ready_file": Path("/nowhere/ready")}, "/nowhere/ready cannot be written"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_anything_starts(
    watched: Watched, options: dict[str, Any], problem: str
) -> None:
    root = watched.access_log.parent / "models"
    with pytest.raises(UserError, match=problem):
        serve(ServerOptions(root, grpc_port=free_ports(1)[0], metrics_port=None, **options))


def slow(turns: int) -> pb.ModelInferRequest:
    return request("slow", turns=np.array([[turns]], dtype=np.int64))


def test_sigterm_drains(tmp_path: Path) -> None:
    """Readiness goes first, what was accepted is answered, what is new is refused by name."""
    codes: Counter[str] = Counter()
    ending, lock = threading.Event(), threading.Lock()

    def ask_until_refused(server: Watched) -> None:
        with server.stub() as stub:
            while True:
                try:
                    stub.ModelInfer(slow(50), timeout=PATIENCE_S)
                    outcome = "after" if ending.is_set() else "before"
                except grpc.RpcError as error:
                    outcome = f"{error.code().name}: {error.details()}"
                with lock:
                    codes[outcome] += 1
                if outcome != "before":
                    return

    with served(tmp_path) as server, server.stub() as old:
        callers = [
            threading.Thread(target=ask_until_refused, args=(server,), daemon=True)
            for _ in range(8)
        ]
        for caller in callers:
            caller.start()
        eventually(lambda: codes["before"] >= 8)
        long = [old.ModelInfer.future(slow(12_000), timeout=PATIENCE_S) for _ in range(2)]
        eventually(
            lambda: (
                "bilateral_calls_under_way 9" in server.page()
                or "bilateral_calls_under_way 10" in server.page()
            )
        )
        ending.set()
        server.process.terminate()
        eventually(lambda: not server.ready_file.exists())

        def refusal() -> str | None:
            try:
                with server.stub() as new:
                    new.ModelInfer(slow(1), timeout=PATIENCE_S)
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"
            return None

        assert eventually(refusal) == f"UNAVAILABLE: {DRAINING}"
        assert not old.ServerReady(pb.ServerReadyRequest()).ready
        assert old.ServerLive(pb.ServerLiveRequest()).live
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=60)
        assert not any(future.done() and future.exception() for future in long)
        for future in long:
            assert future.result().model_name == "slow"
        for caller in callers:
            caller.join(PATIENCE_S)
        assert server.process.wait(PATIENCE_S) == 0
        lines = server.inferences()
    assert set(codes) <= {"before", "after", f"UNAVAILABLE: {DRAINING}"}
    assert codes["after"]
    # Of those that were sent on, none failed; of those that failed, none was sent on.
    assert Counter(line["status"] for line in lines if line["waited_ms"] is not None).keys() == {
        "OK"
    }
    answered = codes["before"] + codes["after"] + len(long)
    assert sum(line["status"] == "OK" for line in lines) >= answered
