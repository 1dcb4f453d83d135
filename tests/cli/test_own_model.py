"""Models of your own on the command line: the worked examples, from their weights to an answer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.builders.graph_faults import change_weight
from tests.cli.conftest import ROOT, Bilateral
from tests.serving.server.live_processes import free_ports
from torch import nn

from bilateral_export.models import examples
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_serving.client import Client
from bilateral_serving.server import ServerOptions, running

FOLDER = Path(examples.__file__).parent


def model_of(name: str) -> str:
    return f"{FOLDER / name}.py:build"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained weights of every example, as far as the pipeline can tell."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("vit", "decoder", "monitor"):
        module = importlib.import_module(f"{examples.__name__}.{name}").build().module
        torch.manual_seed(0)
        for key, parameter in module.named_parameters():
            if not key.endswith("log_bandwidth"):
                nn.init.normal_(parameter, std=0.2)
        torch.save({"model": module.state_dict(), "epoch": 3}, folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize(
    ("name", "precision", "nodes"),
    [("vit", "fp16", 2), ("decoder", "fp32", 2), ("monitor", "fp32", 1)],
)
def test_an_example_is_exported_lowered_and_in_parity(
    name: str, precision: str, nodes: int, weights: Path, tmp_path: Path, bilateral: Bilateral
) -> None:
    checkpoint, onnx_file = weights / f"{name}.pt", tmp_path / f"{name}.onnx"
    model = ("--model", model_of(name))
    made = bilateral("export", checkpoint, onnx_file, *model, "--precision", precision, "--json")
    assert made.code == 0, made.err
    assert made.json["attention_nodes"] == nodes
    compared = bilateral("parity", checkpoint, onnx_file, *model, "--json", "--batches", "1,3")
    assert compared.code == 0, compared.out + compared.err
    assert compared.json["family"] == "user-model"

    definition = importlib.import_module(f"{examples.__name__}.{name}").build()
    inputs = definition.draw(2, np.random.default_rng(1))
    answers = []
    lowered = tmp_path / "lowered.onnx"
    assert bilateral("lower", onnx_file, "-o", lowered).code == 0
    for file in (onnx_file, lowered):
        with OnnxRuntimeRunner(file) as runner:
            answers.append(runner.run(inputs))
    for output, values in answers[0].items():
        np.testing.assert_allclose(answers[1][output], values, rtol=0.02, atol=0.02)


@pytest.fixture(scope="module")
def vit_onnx(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bilateral_export import export_onnx, load_checkpoint

    path = tmp_path_factory.mktemp("vit") / "vit.onnx"
    export_onnx(load_checkpoint(weights / "vit.pt", model=model_of("vit")), path)
    return path


def test_a_fault_is_found_at_the_users_own_line(
    vit_onnx: Path, weights: Path, tmp_path: Path, bilateral: Bilateral
) -> None:
    graph = onnx.load(vit_onnx)
    change_weight("blocks.1.mlp.2/MatMul", 1, lambda w: w * 1.01)(graph)
    onnx.save(graph, tmp_path / "faulty.onnx")
    outcome = bilateral(
        *("parity", weights / "vit.pt", tmp_path / "faulty.onnx", "--model", model_of("vit")),
        *("--items", 8, "--batches", "1,2"),
    )
    assert outcome.code == 1
    line = 1 + next(
        number
        for number, text in enumerate((FOLDER / "vit.py").read_text().splitlines())
        if "self.mlp(self.norm2(x))" in text
    )
    assert f"torch module blocks.1.mlp.2, source vit.py:{line}" in outcome.out


def test_a_plan_is_built(vit_onnx: Path, tmp_path: Path, bilateral: Bilateral) -> None:
    pytest.importorskip("tensorrt_rtx")
    built = bilateral("build", vit_onnx, tmp_path / "vit.plan", "--sm", 86, "--json")
    assert built.code == 0, built.err
    assert built.json["attention"]["nodes"] == 2


def test_the_file_alone_runs_no_code(
    vit_onnx: Path, weights: Path, tmp_path: Path, bilateral: Bilateral
) -> None:
    outcome = bilateral("parity", weights / "vit.pt", vit_onnx)
    assert outcome.code == 2
    assert "Give --model vit.py:build, with its path; this runs that file's code" in outcome.err
    (tmp_path / "vit.py").write_text("raise SystemExit('ran')\n")
    shown = bilateral("inspect", vit_onnx)
    assert shown.code == 0


@pytest.mark.parametrize(
    ("text", "argument", "complaint"),
    [
        ("", "mine.py:build", "mine.py is empty"),
        ("x = 1\n", "mine.py:build", "mine.py has no function build. It has none"),
        ("def make(): pass\n", "mine.py:build", "It has make"),
        ("def build(): return 3\n", "mine.py:build", "returns a int"),
        ("\nimport nowhere_at_all\n", "mine.py:build", "at mine.py:2: ModuleNotFoundError"),
        ("def build(:\n", "mine.py:build", "at mine.py:1: SyntaxError"),
        ("def build():\n    return 1 / 0\n", "mine.py:build", "at mine.py:2: ZeroDivisionError"),
        ("x = 1\n", "mine.py", "Write it as my_model.py:build"),
        ("x = 1\n", "other.py:build", "other.py does not exist"),
    ],
)
def test_code_that_fails_is_one_line(
    text: str, argument: str, complaint: str, weights: Path, tmp_path: Path, bilateral: Bilateral
) -> None:
    (tmp_path / "mine.py").write_text(text)
    target = tmp_path / "out.onnx"
    outcome = bilateral("export", weights / "vit.pt", target, "--model", tmp_path / argument)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert outcome.err.count("\n") == 1
    assert not target.exists()


def test_new_writes_a_start_that_passes_its_own_test(tmp_path: Path, bilateral: Bilateral) -> None:
    path = tmp_path / "my_model.py"
    written = bilateral("new", path)
    assert written.code == 0, written.err
    assert f"--model {path}:build" in written.out
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    paths = [str(ROOT / folder) for folder in ("export", "serving", "benchmarks", "cli")]
    ran = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "-o", f"pythonpath={' '.join(paths)}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
    again = bilateral("new", path)
    assert (again.code, "exists already" in again.err) == (2, True)
    assert bilateral("new", tmp_path / "my-model.txt").code == 2


def test_two_inputs_and_two_outputs_are_served(
    weights: Path, tmp_path: Path, bilateral: Bilateral
) -> None:
    from bilateral_export import export_onnx, load_checkpoint

    checkpoint = load_checkpoint(weights / "monitor.pt", model=model_of("monitor"))
    file, models = tmp_path / "monitor.onnx", tmp_path / "models"
    export_onnx(checkpoint, file)
    added = bilateral("repository", "add", "monitor", file, "--repository", models)
    assert added.code == 0, added.err
    model = checkpoint.build_model()
    inputs = model.example(3, np.random.default_rng(0), time=9)
    options = ServerOptions(models, grpc_port=free_ports(1)[0], http_port=None, metrics_port=None)
    with running(options) as server, Client(server.url, timeout_s=120) as client:
        served = client.infer("monitor", inputs)
    with torch.inference_mode():
        wanted = model(*map(torch.from_numpy, inputs.values()))
    assert served["course"].shape == (3, 9)
    for name, values in zip(("risk", "course"), wanted, strict=True):
        np.testing.assert_allclose(served[name], values.numpy(), rtol=1e-4, atol=1e-5)
