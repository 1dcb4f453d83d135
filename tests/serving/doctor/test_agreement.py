"""The doctor and the real server agree on which configurations load.

Where the doctor says "Triton would not load the model", the server refuses it; where the server
refuses it, the doctor says so; and a model that loads but cannot be asked is an error too.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.serving.doctor import edits
from tests.serving.server.bare_server import BareServer, bare_server
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from bilateral_serving import config as configs
from bilateral_serving import repository
from bilateral_serving.config import CONFIG_FILE, Settings
from bilateral_serving.datatypes import from_triton
from bilateral_serving.doctor.diagnose import diagnose
from bilateral_serving.doctor.findings import NOT_LOADED, Finding
from bilateral_serving.doctor.machine import read_machine

BASES = ("quadrants", "pairs", "fixed", "largest", "cold", "ensemble")
ENSEMBLE = """
name: "ensemble" platform: "ensemble" max_batch_size: 4
input { name: "image" data_type: TYPE_FP32 dims: [1, 2, 2] }
output { name: "sum" data_type: TYPE_FP32 dims: -1 }
output { name: "product" data_type: TYPE_FP32 dims: 4 }
ensemble_scheduling {
  step {
    model_name: "quadrants" model_version: -1
    input_map { key: "pixel_values" value: "image" }
    output_map { key: "logits" value: "scores" }
  }
  step {
    model_name: "pairs" model_version: -1
    input_map { key: "a" value: "scores" }
    input_map { key: "b" value: "scores" }
    output_map { key: "sum" value: "sum" }
    output_map { key: "product" value: "product" }
  }
}
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good models of several kinds: with labels and versions, free sizes, no batch, no warm-up."""
    files, root = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("good")
    both = Settings(max_batch_size=4, threads=1, versions="all")
    for number in (1, 2):
        repository.add("quadrants", models.quadrants(files / f"{number}.onnx"), root, settings=both)
    one = Settings(threads=1)
    repository.add("pairs", models.sum_and_product(files / "p.onnx"), root, settings=one)
    repository.add("fixed", models.quadrants(files / "f.onnx", batch=1), root, settings=one)
    repository.add("largest", models.largest(files / "m.onnx"), root, settings=one)
    cold = Settings(threads=1, warmup=False)
    repository.add("cold", models.quadrants(files / "c.onnx"), root, settings=cold)
    (root / "ensemble" / "1").mkdir(parents=True)
    (root / "ensemble" / CONFIG_FILE).write_text(ENSEMBLE)
    return root


@pytest.fixture
def server(good: Path, tmp_path: Path) -> Iterator[BareServer]:
    shutil.copytree(good, tmp_path / "served")  # the steps of an ensemble are there
    with bare_server(tmp_path / "served") as running:
        yield running


def copy(good: Path, base: str, served: Path, name: str) -> tuple[Path, pb.ModelConfig]:
    """A good model under another name, and its configuration."""
    shutil.copytree(good / base, served / name)
    path = served / name / CONFIG_FILE
    config = configs.parse(path.read_text(), path)
    config.name = name
    path.write_text(configs.write(config))
    return path, config


def ask(server: BareServer, name: str, config: pb.ModelConfig) -> str | None:
    """Why a request fails that is made as the configuration says; None if it does not."""
    inputs = []
    for tensor in config.input:
        if tensor.optional:
            continue
        shape = [8 if size < 0 else size for size in tensor.dims]
        if config.max_batch_size:
            shape.insert(0, min(2, config.max_batch_size))
        kind = pb.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        given = InferInput(tensor.name, shape, kind.replace("STRING", "BYTES"))
        dtypes = {"STRING": "object", "BF16": "float32"}
        dtype = dtypes.get(kind) or from_triton("", kind, (), False).dtype
        given.set_data_from_numpy(np.zeros(shape, dtype))
        inputs.append(given)
    outputs = [InferRequestedOutput(tensor.name) for tensor in config.output]
    try:
        server.client.infer(name, inputs, outputs=outputs, client_timeout=30)
    except InferenceServerException as refusal:
        return str(refusal.message())
    return None


def disagreements(server: BareServer, served: Path, edited: dict[str, str]) -> list[str]:
    """Where the doctor and the server differ, in words."""
    found: dict[str, list[Finding]] = {name: [] for name in edited}
    for finding in diagnose(served, read_machine()).findings:
        if finding.severity == "error" and (name := finding.subject.split()[0]) in found:
            found[name].append(finding)
    wrong = []
    for name, what in edited.items():
        said = [f"{finding.problem} ({finding.why})" for finding in found[name]]
        foretold = any(finding.why == NOT_LOADED for finding in found[name])
        # Some that are refused are waited for for ever.
        refused = server.load(name, seconds=20 if foretold else 120)
        path = served / name / CONFIG_FILE
        if foretold != (refused is not None):
            wrong.append(f"{name}: {what}\n  doctor: {said}\n  server: {refused}")
        elif refused is None and not said:
            if failed := ask(server, name, configs.parse(path.read_text(), path)):
                wrong.append(f"{name}: {what}\n  doctor: nothing\n  a request: {failed}")
            server.unload(name)
    return wrong


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


FIXED: dict[str, tuple[str, Callable[[pb.ModelConfig, Path], object]]] = {
    "nothing": ("quadrants", lambda config, path: None),
    "smaller-batch": ("quadrants", lambda config, path: setattr(config, "max_batch_size", 2)),
    "preferred": (
        "quadrants",
        lambda config, path: config.dynamic_batching.preferred_batch_size.append(16),
    ),
    "gpus-of-a-cpu": ("quadrants", lambda config, path: config.instance_group[0].gpus.append(0)),
    "warm-up": ("pairs", lambda config, path: setattr(config.model_warmup[1], "batch_size", 64)),
    "warm-up-shape": (
        "quadrants",
        lambda config, path: config.model_warmup[0].inputs["pixel_values"].dims.append(1),
    ),
    "latest-none": (
        "fixed",
        lambda config, path: setattr(config.version_policy.latest, "num_versions", 0),
    ),
    "one-version-absent": (
        "quadrants",
        lambda config, path: config.version_policy.CopyFrom(configs.version_policy("1,9")),
    ),
    "bit-flipped": ("quadrants", lambda config, path: flip_a_bit(path / "2" / "model.onnx")),
    "no-labels": ("quadrants", lambda config, path: (path / "labels.txt").unlink()),
    "ensemble-as-it-is": ("ensemble", lambda config, path: None),
    "ensemble-with-instances": ("ensemble", lambda config, path: config.instance_group.add()),
    "type": ("cold", lambda config, path: setattr(config.input[0], "data_type", pb.TYPE_FP16)),
}


def test_edits_of_every_kind(good: Path, server: BareServer, tmp_path: Path) -> None:
    served = tmp_path / "served"
    for name, (base, change) in FIXED.items():
        path, config = copy(good, base, served, name)
        change(config, path.parent)
        path.write_text(configs.write(config))
    assert disagreements(server, served, dict.fromkeys(FIXED, "")) == []
    assert "is not the file that was added" in str(server.load("bit-flipped"))


def test_code_of_others_is_not_run_and_nothing_is_written(good: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    shutil.copytree(good / "cold", root / "cold")
    before = sorted(path.name for path in (root / "cold" / "1").iterdir())
    assert diagnose(root, read_machine()).findings == ()
    assert sorted(path.name for path in (root / "cold" / "1").iterdir()) == before
    for name in ("model.py", "onnxruntime.py"):
        path = root / "cold" / "1" / name
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        findings = diagnose(root, read_machine()).findings
        assert any(f"{name} is not of the installed" in finding.problem for finding in findings)
        assert not (tmp_path / "ran").exists()
        if name == "model.py":
            shutil.copy(good / "cold" / "1" / name, path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0])
def test_a_hundred_random_edits(seed: int, good: Path, server: BareServer, tmp_path: Path) -> None:
    served, generator = tmp_path / "served", random.Random(seed)
    edited: dict[str, str] = {}
    while len(edited) < 100:
        name = f"edit{len(edited)}"
        path, config = copy(good, generator.choice(BASES), served, name)
        before = configs.write(config)
        edited[name] = edits.edit(config, generator)
        path.write_text(configs.write(config))
        if configs.write(config) == before:
            shutil.rmtree(path.parent)
            del edited[name]
    wrong = disagreements(server, served, edited)
    assert not wrong, "\n".join(wrong)
