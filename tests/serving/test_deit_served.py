"""A DeiT training checkpoint becomes a service: JPEG files in, names of ImageNet classes out."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from tests.serving.server.live_processes import free_ports

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.registry import build, named
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.client.inputs.images import preprocess, read_image
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

NAME = "deit_bilateral_tiny_patch16_224"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """DeiT-Bilateral at its real size; weights are random, wide enough to tell images apart."""
    path = tmp_path_factory.mktemp("deit") / "checkpoint.pth"
    torch.manual_seed(0)
    model = build(named(NAME))
    torch.nn.init.normal_(model.get_submodule("head").weight, std=0.2)  # type: ignore[arg-type]
    torch.save({"model": model.state_dict(), "args": Namespace(model=NAME)}, path)
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def client(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("served-deit")
    exported = export_onnx(checkpoint, root / "deit.onnx")
    repository.add(
        "deit",
        exported.path,
        root / "repository",
        settings=Settings(max_batch_size=4, warmup=False),
    )
    grpc, metrics = free_ports(2)
    options = ServerOptions(root / "repository", grpc_port=grpc, metrics_port=metrics)
    with running(options) as server, Client(server.url, timeout_s=60) as connected:
        yield connected


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(stream, "JPEG")
    return stream.getvalue()


def test_top_five_of_jpeg_bytes_are_those_of_torch(client: Client, checkpoint: Checkpoint) -> None:
    images = [jpeg(seed) for seed in range(5)]
    served = client.classify("deit", images, k=5)

    how = checkpoint.card.preprocessing
    assert how is not None
    batch = np.stack([preprocess(read_image(image), how) for image in images])
    with torch.inference_mode():
        probabilities = checkpoint.build_model()(torch.from_numpy(batch)).softmax(-1)
    expected = probabilities.topk(5)
    for row, predictions in enumerate(served):
        assert [p.index for p in predictions] == expected.indices[row].tolist()
        assert [p.label for p in predictions] == [
            checkpoint.card.labels[index] for index in expected.indices[row]
        ]
        np.testing.assert_allclose(
            [p.probability for p in predictions], expected.values[row], rtol=1e-3
        )
    assert len({predictions[0].label for predictions in served}) > 1
