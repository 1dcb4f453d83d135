"""Commands that ask a running server, and `bilateral serve` itself, as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.cli.conftest import CHECKPOINTS, DIGITS, Bilateral
from tests.cli.test_bad_input import refused
from tests.serving.server.live_processes import free_ports, management
from tritonclient.grpc import InferenceServerClient

from bilateral_export.metadata import METADATA_KEY
from bilateral_serving import repository
from bilateral_serving.server import ServerOptions, running

LABELS = ["cat [feline]", "end [/x]", "[red]4[/red]", ":smile:", "\x1b[31m", "ü😀", *"6789"]
IMAGES = [CHECKPOINTS / "digits" / f"{digit}-0.png" for digit in (3, 7)]


@pytest.fixture(scope="module")
def models(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository") / "models"
    repository.add("digits", digits_onnx, root)
    stale = onnx.load(digits_onnx)
    for weight in stale.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            changed = numpy_helper.to_array(weight) * np.float32(1.001)
            weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(stale, root.parent / "stale.onnx")
    repository.add("stale", root.parent / "stale.onnx", root)
    named = onnx.load(digits_onnx)
    (entry,) = [entry for entry in named.metadata_props if entry.key == METADATA_KEY]
    entry.value = json.dumps(json.loads(entry.value) | {"labels": LABELS})
    onnx.save(named, root.parent / "named.onnx")
    repository.add("named", root.parent / "named.onnx", root)
    return root


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    port = free_ports(1)[0]
    options = ServerOptions(models, grpc_port=port, http_port=None, metrics_port=None)
    with running(options) as server:
        yield server.url


def test_infer_prints_the_labels_of_real_images(bilateral: Bilateral, url: str) -> None:
    document = bilateral("infer", "digits", *IMAGES, "--url", url, "--top", 2, "--json").json
    assert [answer["predictions"][0]["label"] for answer in document] == ["3", "7"]
    assert [len(answer["predictions"]) for answer in document] == [2, 2]
    people = bilateral("infer", "digits", IMAGES[0], "--url", url)
    assert people.code == 0
    assert "3-0.png" in people.out


def test_infer_prints_labels_and_file_names_as_they_are(
    bilateral: Bilateral, url: str, tmp_path: Path
) -> None:
    image = tmp_path / "pic[b].png"
    shutil.copy(IMAGES[0], image)
    arguments = ("infer", "named", image, "--url", url, "--top", 10)
    shown = bilateral(*arguments)
    assert shown.code == 0
    assert str(image) in shown.out
    for label in LABELS:
        assert label.replace("\x1b", "\\x1b") in shown.out
    (answer,) = bilateral(*arguments, "--json").json
    assert {prediction["label"] for prediction in answer["predictions"]} == set(LABELS)


def test_parity_judges_the_served_model_too(
    bilateral: Bilateral, digits_onnx: Path, url: str
) -> None:
    outcome = bilateral("parity", DIGITS, digits_onnx, "--served", "digits", "--url", url, "--json")
    assert outcome.code == 0
    held = {c["name"] for c in outcome.json["checks"] if c["stage"] == "triton digits"}
    assert held >= {"batch of items", "repeated calls", "concurrent calls", "extreme: NaN"}
    # The concurrent requests did meet in dynamic batches: fewer executions than requests.
    with InferenceServerClient(url) as client:
        (model,) = client.get_inference_statistics("digits", headers=management(url)).model_stats
    assert model.execution_count < model.inference_stats.success.count


@pytest.mark.timing  # each of its windows must see a request
def test_bench_measures_the_served_model(bilateral: Bilateral, url: str) -> None:
    # Windows that a busy machine leaves without an answer do not agree: it measures on.
    timed = ("--duration", 1.5, "--max-duration", 6, "--warmup", 0.2, "--json")
    outcome = bilateral("bench", "served", "digits", "--url", url, *timed)
    document = outcome.json
    (report,) = document["items"]
    assert outcome.code == (0 if report["valid"] else 1), outcome.err  # a busy machine stops it
    assert report["requests"] > 0
    assert report["errors"] == 0


def test_weights_that_are_stale_in_the_repository_only_fail_the_served_row_only(
    bilateral: Bilateral, digits_onnx: Path, url: str
) -> None:
    arguments = (DIGITS, digits_onnx, "--served", "stale", "--url", url, "--batches", "1,8,32")
    outcome = bilateral("parity", *arguments, "--json")
    assert outcome.code == 1
    rows = outcome.json["rows"]
    assert [row["stage"] for row in rows if not row["passed"]] == ["triton stale"]
    failed = {check["stage"] for check in outcome.json["checks"] if not check["passed"]}
    assert failed == {"triton stale"}


def test_what_a_server_refuses_is_one_line(
    bilateral: Bilateral, digits_onnx: Path, url: str, tmp_path: Path
) -> None:
    text = tmp_path / "picture.png"
    text.write_text("no picture")
    here = ("--url", url)
    for arguments, complaint in (
        (("infer", "nobody", IMAGES[0], *here), "nobody"),
        (("infer", "digits", text, *here), "picture.png"),
        (("infer", "digits", tmp_path / "gone.png", *here), "does not exist"),
        (("bench", "served", "nobody", *here), "nobody"),
        (("parity", DIGITS, digits_onnx, "--served", "nobody", *here), "nobody"),
    ):
        assert complaint in refused(bilateral(*arguments)), arguments


def test_serve_says_when_it_is_ready_and_stops_cleanly(models: Path) -> None:
    ports = ["--grpc-port", str(free_ports(1)[0]), "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "bilateral_cli", "serve", "--repository", str(models), *ports]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"},
    )
    assert process.stdout is not None
    assert "Ready after" in process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Stopped." in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a child process was left behind"
        time.sleep(0.05)
