"""A model of several sizes behind the real server: the size that the caller asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.builders.exported import shallow
from tests.serving.server.live_processes import free_ports
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.checkpoint.several_sizes import for_sizes
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.preprocessing import ImagePreprocessing
from bilateral_serving import probes, repository
from bilateral_serving.client import Client
from bilateral_serving.client.answers import answer_files
from bilateral_serving.client.inputs.files import prepare
from bilateral_serving.config import CONFIG_FILE, Settings, read
from bilateral_serving.server import ServerOptions, running

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"


@pytest.fixture(scope="module")
def digits() -> Checkpoint:
    return shallow(load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors"))


@pytest.fixture(scope="module")
def served(digits: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    path = export_onnx(for_sizes(digits, [(6, 6), (16, 24)]), root / "digits.onnx").path
    for name, raw in (("digits", True), ("tensors", False)):
        settings = Settings(threads=1, raw=raw)
        repository.add(name, path, root / "repository", settings=settings)
    return root / "repository"


@pytest.fixture(scope="module")
def client(served: Path) -> Iterator[Client]:
    grpc, metrics = free_ports(2)
    options = ServerOptions(served, grpc_port=grpc, metrics_port=metrics)
    with running(options) as ready, Client(ready.url, timeout_s=120) as connected:
        yield connected


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph three times as wide as high."""
    path = tmp_path_factory.mktemp("image") / "wide.png"
    values = np.random.default_rng(0).integers(0, 256, (40, 120), dtype=np.uint8)
    Image.fromarray(values).resize((120, 40)).save(path)
    return path


def static(digits: Checkpoint, image: Path, size: tuple[int, int]) -> np.ndarray:
    """Class probabilities of an image in PyTorch, with the checkpoint resized to a size."""
    moved = at_resolution(digits, size)
    how = moved.card.preprocessing
    assert isinstance(how, ImagePreprocessing)
    pixels = torch.from_numpy(prepare([image], how, "digits"))
    with torch.no_grad():
        return moved.build_model()(pixels).softmax(-1)[0].numpy()


def test_warm_up_and_probes_have_images_that_the_model_takes(served: Path) -> None:
    config = read(served / "digits" / CONFIG_FILE)
    assert list(config.input[0].dims) == [1, -1, -1]
    assert {tuple(w.inputs["image"].dims) for w in config.model_warmup} == {(1, 8, 8)}
    assert list(probes.zeros(config).inputs[0].shape) == [1, 1, 6, 6]


@pytest.mark.parametrize(
    ("size", "at"), [(None, (8, 8)), (12, (12, 12)), ((16, 10), (16, 10)), ("aspect", (8, 24))]
)
def test_the_answer_is_that_of_the_static_model_at_that_size(
    client: Client, digits: Checkpoint, wide: Path, size, at: tuple[int, int]
) -> None:
    wanted = static(digits, wide, at)
    for answer in answer_files(client, "digits", [wide, wide], 10, size=size):
        for label, probability in answer.classes:
            assert probability == pytest.approx(wanted[int(label)], abs=1e-5)


def test_a_size_out_of_range_is_refused_before_it_is_sent(client: Client, wide: Path) -> None:
    with pytest.raises(UserError, match="6 to 16 x 6 to 24 pixels, multiples of 2"):
        client.classify("digits", [wide], size=32)
    with pytest.raises(UserError, match="7x8 is not of 6 to 16"):
        client.infer("digits", {"image": np.zeros((1, 1, 7, 8), dtype=np.float32)})
    with pytest.raises(UserError, match="one at a time"):
        client.classify("digits", [wide, wide], size="aspect")


@pytest.mark.parametrize("name", ["digits", "tensors"])
@pytest.mark.parametrize("size", [(7, 8), (4, 8), (8, 26)])
def test_the_server_refuses_it_of_any_client(
    client: Client, name: str, size: tuple[int, int]
) -> None:
    with InferenceServerClient(client.url) as stranger:
        image = InferInput("image", (1, 1, *size), "FP32")
        image.set_data_from_numpy(np.zeros((1, 1, *size), dtype=np.float32))
        with pytest.raises(InferenceServerException, match="6 to 16 x 6 to 24 pixels"):
            stranger.infer(name, [image])
