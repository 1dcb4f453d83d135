"""Files that version 0.1.0 wrote before its modules moved: they load, agree and are served.

`older_files/` holds a checkpoint of random weights, what `export`, `lower`, `build` (the manifest
alone) and `parity --json` made of it, a model repository, and logits of the FP64 model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.serving.server.live_processes import free_ports

from bilateral_export.artifact import read_onnx
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.engine.plan.manifest import read_manifest
from bilateral_export.parity.check import check
from bilateral_export.parity.report.document import read_report
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.tensors import Array
from bilateral_serving.client import Client
from bilateral_serving.server import ServerOptions, running

FILES = Path(__file__).parent / "older_files"


@pytest.fixture(scope="module")
def known() -> dict[str, Array]:
    return dict(np.load(FILES / "answer.npz"))


def test_a_checkpoint_loads_as_the_same_model(known: dict[str, Array]) -> None:
    checkpoint = load_checkpoint(FILES / "tiny.safetensors")
    with torch.no_grad():
        logits = checkpoint.build_model().double()(torch.from_numpy(known["image"]).double())
    np.testing.assert_allclose(logits.numpy(), known["logits"], rtol=1e-12, atol=1e-12)
    assert checkpoint.card.labels == tuple("0123456789")


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.onnxruntime-cpu.onnx"])
def test_a_file_runs_as_it_did(known: dict[str, Array], name: str) -> None:
    with OnnxRuntimeRunner(FILES / name) as runner:
        logits = runner.run({"image": known["image"]})["logits"]
    np.testing.assert_allclose(logits, known["logits"], rtol=1e-4, atol=1e-4)


def test_an_exported_file_is_read_and_passes_parity() -> None:
    artifact = read_onnx(FILES / "tiny.onnx")
    assert artifact.metadata is not None
    assert artifact.metadata.family == "image-classifier"
    report = check(FILES / "tiny.safetensors", FILES / "tiny.onnx")
    rows = {row.stage: row.passed for row in report.rows}
    assert rows["onnxruntime CPU, fp32 file"]
    assert set(rows) >= {row.stage for row in read_report(FILES / "parity.json").rows}


def test_a_manifest_is_read() -> None:
    manifest = read_manifest(FILES / "tiny.plan")
    assert manifest.targets[:2] == ("sm_80", "sm_86")
    assert [spec.name for spec in manifest.inputs] == ["image"]


def test_a_repository_is_served(known: dict[str, Array], tmp_path: Path) -> None:
    models = shutil.copytree(FILES / "models", tmp_path / "models")
    (port,) = free_ports(1)
    options = ServerOptions(models, grpc_port=port, http_port=None, metrics_port=None)
    with running(options) as server, Client(server.url) as client:
        logits = client.infer("tiny", {"image": known["image"]})["logits"]
    np.testing.assert_allclose(logits, known["logits"], rtol=1e-4, atol=1e-4)
