"""Commands that ask a running server, and `bilateral serve` itself, as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import CHECKPOINTS, DIGITS, Bilateral
from tests.cli.test_bad_input import refused

from bilateral_benchmarks.ports import free_port
from bilateral_serving import repository
from bilateral_serving.server import ServerOptions, running

IMAGES = [CHECKPOINTS / "digits" / f"{digit}-0.png" for digit in (3, 7)]


@pytest.fixture(scope="module")
def models(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository") / "models"
    repository.add("digits", digits_onnx, root)
    return root


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    port = free_port()
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


def test_parity_judges_the_served_model_too(
    bilateral: Bilateral, digits_onnx: Path, url: str
) -> None:
    outcome = bilateral("parity", DIGITS, digits_onnx, "--served", "digits", "--url", url)
    assert outcome.code == 0
    assert "triton" in outcome.out


def test_bench_measures_the_served_model(bilateral: Bilateral, url: str) -> None:
    timed = ("--duration", 0.5, "--warmup", 0.2, "--json")
    document = bilateral("bench", "served", "digits", "--url", url, *timed).json
    (report,) = document["items"]
    assert report["requests"] > 0
    assert report["errors"] == 0


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_when_it_is_ready_and_stops_cleanly(models: Path, number: int) -> None:
    ports = ["--grpc-port", str(free_port()), "--http-port", "0", "--metrics-port", "0"]
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
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Stopped." in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a child process was left behind"
        time.sleep(0.05)
