"""What is measured must answer: what a real server answers wrongly is noticed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.serving.server.live_processes import free_ports
from tritonclient.grpc import service_pb2

from bilateral_benchmarks.experiments.breakdown import measure_breakdown
from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.load.answers import TOLERANCE, Expected, first_answer
from bilateral_benchmarks.load.run import RunFailedError
from bilateral_benchmarks.load.schedule import Load
from bilateral_cli.main import run
from bilateral_export.tensors import TensorSpec
from bilateral_serving.client import Client
from bilateral_serving.server import ServerOptions, running

# Windows of half a second must see a request.
pytestmark = pytest.mark.timing

# After an input above 500 a model answers rightly RIGHT times, which is to the trial request, and
# then as its name says.
RIGHT = 1
MODEL = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.kind = args["model_name"]
        self.seen = 0

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        y = 2 * x
        self.seen = 0 if x.min() > 500 else self.seen + 1
        if self.kind == "rows_at_once" or self.seen > RIGHT:
            if self.kind.startswith("rows"):
                y = y[:1]
            elif self.kind == "columns":
                y = y[:, :2]
            elif self.kind == "nan":
                y = np.where(x == x.max(), np.float32("nan"), y)
            elif self.kind == "other":
                y = y + 1
            elif self.kind == "rounded":
                y = y * np.float32(1 + 1e-6)
            elif self.kind == "nothing":
                return pb_utils.InferenceResponse(output_tensors=[])
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y.astype(np.float32))])
"""
CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [{{ name: "x", data_type: TYPE_FP32, dims: [ 3 ] }}]
output [{{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
"""
KINDS = {
    "rows": "is float32[1, 3], not float32[4, 3]",
    "columns": "is float32[4, 2], not float32[4, 3]",
    "nan": "holds NaN or infinity",
    "other": "differs from the first answer by 1 (its largest value is 22)",
    "nothing": "outputs none",
}
X = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
BRIEF = {"duration_s": 0.9, "warmup_s": 0.1}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("wrong")
    for name in (*KINDS, "rows_at_once", "rounded"):
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL.replace("RIGHT", str(RIGHT)))
        (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name))
    options = ServerOptions(
        repository, grpc_port=free_ports(1)[0], http_port=None, metrics_port=None
    )
    with running(options) as server:
        yield server.url


def restart(url: str, kind: str) -> None:
    with Client(url) as client:
        client.infer(kind, {"x": X["x"] + 1000})


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_goes_wrong_is_a_failed_request(url: str, kind: str) -> None:
    for load in (Load(), Load(rate=100)) if kind == "other" else (Load(),):
        restart(url, kind)
        with pytest.raises(RunFailedError) as failed:
            bench_served(url, kind, X, load=load, **BRIEF)
        assert KINDS[kind] in failed.value.problem


def test_every_process_knows_what_to_expect(url: str) -> None:
    restart(url, "other")
    with pytest.raises(RunFailedError, match="wrong answer: output y differs"):
        bench_served(url, "other", X, load=Load(concurrency=2, processes=2), **BRIEF)


def test_a_first_answer_with_too_few_rows_is_refused(url: str) -> None:
    for measure in (bench_served, measure_breakdown):
        with pytest.raises(RunFailedError, match=r"output y has shape \[1, 3\]"):
            measure(url, "rows_at_once", X, duration_s=0.2)


def test_rounding_is_no_other_answer(url: str) -> None:
    assert bench_served(url, "rounded", X, **BRIEF).errors == 0


@pytest.mark.parametrize(
    "command",
    [
        ("served", "nan"),
        ("scenario", "SingleStream", "other"),
        ("scenario", "Server", "columns"),
        ("sweep", "concurrency", "1", "nothing"),
        ("breakdown", "columns"),
    ],
)
def test_every_command_ends_with_1(
    url: str,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    restart(url, command[-1])
    timed = () if command[0] == "breakdown" else ("--warmup", "0.1")
    options = (*command, "--url", url, "--duration", "0.6", *timed)
    monkeypatch.setattr(sys, "argv", ["bilateral", "bench", *options])
    with pytest.raises(SystemExit) as ended:
        run()
    error = capsys.readouterr().err
    assert ended.value.code == 1, error
    assert "wrong answer" in error or "does not answer as it declares" in error
    assert "Traceback" not in error


def test_a_report_with_one_wrong_answer_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = json.loads(Path("benchmarks/results/cpu.json").read_text())
    report = next(item for item in document["items"] if item["kind"] == "sweep")["points"][0]
    report = report["report"] | {"valid": True, "problems": []}
    codes = []
    for name, valid in (("right", True), ("wrong", False)):
        if not valid:
            report |= {"valid": False, "errors": 1, "problems": ["1 of 9 requests failed: [x] /y"]}
        saved = {"title": "t", "items": [report]}
        (tmp_path / f"{name}.json").write_text(json.dumps(saved))
        compared = ["right.json", f"{name}.json"]
        paths = [str(tmp_path / file) for file in compared]
        monkeypatch.setattr(sys, "argv", ["bilateral", "bench", "compare", *paths])
        with pytest.raises(SystemExit) as ended:
            run()
        codes.append(ended.value.code)
    assert codes == [0, 1]
    assert "INVALID: 1 of 9 requests failed: [x] /y" in capsys.readouterr().err


def test_what_an_answer_must_be_like() -> None:
    specs = [TensorSpec("x", "float32", ("batch", 3))]
    declared = [TensorSpec("y", "float32", ("batch", 2)), TensorSpec("k", "int64", ("batch",))]
    y, k = np.array([[1.0, -8.0]] * 4, np.float32), np.arange(4)
    expected = first_answer("m", specs, X, declared, {"y": y, "k": k})
    assert expected.difference({"y": y * np.float32(1 + TOLERANCE / 2), "k": k}) is None
    for wrong in (
        {"y": y},
        {"y": y, "k": k, "more": k},
        {"y": y[:3], "k": k},
        {"y": y.astype(np.float16), "k": k},
        {"y": y * np.inf, "k": k},
        {"y": y * np.float32(1 + 2 * TOLERANCE), "k": k},
        {"y": y[:, ::-1].copy(), "k": k},
        {"y": y, "k": k + 1},
    ):
        assert expected.difference(wrong) is not None
    for wrong in ({"y": y}, {"y": y[:3], "k": k}, {"y": y * np.nan, "k": k}, {"y": k, "k": k}):
        with pytest.raises(RunFailedError, match="does not answer as it declares"):
            first_answer("m", specs, X, declared, wrong)
    assert "not a ModelInferResponse" in (Expected({}).problem(b"\xff\xff") or "")
    short = service_pb2.ModelInferResponse(raw_output_contents=[bytes(8)])
    short.outputs.add(name="y", datatype="FP32", shape=[4, 2])
    assert "wrong answer: " in (expected.problem(short.SerializeToString()) or "")
    del short.raw_output_contents[:]
    assert "wrong answer: " in (expected.problem(short.SerializeToString()) or "")
