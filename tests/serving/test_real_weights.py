"""Trained weights of another home, from their folder to a served answer, against their own file.

A trained ViT has outlier channels that random weights lack: one channel of this one's residual
stream is ten times the median.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.builders.real_weights import features_of, hugging_face_folder, real_model
from tests.serving.server.live_processes import free_ports

from bilateral_export.checkpoint.features import with_output
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.lowering.lower import lower
from bilateral_export.metadata import Precision
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import Sample
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.openvino_runner import OpenVinoRunner
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.client.inputs.images import preprocess, read_image
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running


@pytest.fixture(scope="module")
def model() -> Path:
    return real_model()


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = hugging_face_folder(model, tmp_path_factory.mktemp("real") / "dinov2_s")
    return with_output(load_checkpoint(folder), "tokens")


def pictures() -> list[bytes]:
    """JPEG files with edges and surfaces, as photographs have and noise has not."""
    files = []
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (5 + seed, 7, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((320, 280)).save(stream, "JPEG", quality=95)
        files.append(stream.getvalue())
    return files


@pytest.fixture(scope="module")
def images(checkpoint: Checkpoint) -> NDArray[np.float32]:
    how = checkpoint.card.preprocessing
    assert how is not None
    return np.stack([preprocess(read_image(file), how) for file in pictures()])


@pytest.fixture(scope="module")
def wanted(model: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return features_of(model, images)


def error(got: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


def test_in_fp64_they_are_those_of_the_file_they_come_from(
    checkpoint: Checkpoint, images: NDArray[np.float32], wanted: NDArray[np.float32]
) -> None:
    with torch.no_grad():
        got = checkpoint.build_model().double()(torch.from_numpy(images).double()).numpy()
    assert error(got, wanted) < 2e-6  # what ONNX Runtime rounds in float32


# ONNX Runtime's CPU provider has no bfloat16 kernels.
@pytest.mark.parametrize(
    ("precision", "limit", "runtime"),
    [
        ("fp32", 3e-6, OnnxRuntimeRunner),
        ("fp16", 1e-2, OnnxRuntimeRunner),
        ("bf16", 8e-2, OpenVinoRunner),
    ],
)
def test_the_exported_file_passes_parity(
    checkpoint: Checkpoint,
    images: NDArray[np.float32],
    wanted: NDArray[np.float32],
    tmp_path: Path,
    precision: Precision,
    limit: float,
    runtime: type[OnnxRuntimeRunner | OpenVinoRunner],
) -> None:
    exported = export_onnx(checkpoint, tmp_path / "f.onnx", precision=precision)
    with runtime(exported.path) as runner:
        (got,) = runner.run({"image": images}).values()
    assert error(got, wanted) < limit
    samples = [Sample("pictures", {"image": images[:2]}), Sample("others", {"image": images[2:]})]
    report = compare(checkpoint, [Candidate(runtime(exported.path), precision)], samples)
    assert report.passed, report.rows


def test_it_is_lowered_and_served(
    checkpoint: Checkpoint,
    images: NDArray[np.float32],
    wanted: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    exported = export_onnx(checkpoint, tmp_path / "f.onnx")
    openvino = lower(exported.path, "openvino", tmp_path / "openvino.onnx")
    with OpenVinoRunner(openvino.path) as runner:
        (got,) = runner.run({"image": images}).values()
    assert error(got, wanted) < 3e-6
    # `add` lowers for the server's runtime.
    settings = Settings(max_batch_size=4, warmup=False)
    repository.add("dino", exported.path, tmp_path / "repository", settings=settings)
    grpc, metrics = free_ports(2)
    options = ServerOptions(tmp_path / "repository", grpc_port=grpc, metrics_port=metrics)
    with running(options) as server, Client(server.url, timeout_s=120) as client:
        served = client.features("dino", pictures())
    assert error(served, wanted) < 3e-6
