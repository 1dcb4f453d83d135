"""A family that lives outside the package: exported, compared with its weights, and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tests.builders.outside_family import PixelLabels, PixelLabelsConfig
from tests.cli.conftest import Bilateral
from tests.serving.server.live_processes import free_ports
from torch import nn

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_serving.client import Client
from bilateral_serving.server import ServerOptions, running


def test_it_is_exported_in_parity_and_served(bilateral: Bilateral, tmp_path: Path) -> None:
    config = PixelLabelsConfig(side=5)
    torch.manual_seed(0)
    model = PixelLabels(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    checkpoint, onnx = tmp_path / "pixels.safetensors", tmp_path / "pixels.onnx"
    card = CheckpointCard(name="pixels", model=config, labels=("sea", "land", "sky"))
    save_checkpoint(checkpoint, model.state_dict(), card)
    assert load_checkpoint(checkpoint).card == card

    assert bilateral("export", checkpoint, onnx).code == 0
    compared = bilateral("parity", checkpoint, onnx, "--json")
    assert compared.code == 0, compared.out + compared.err
    assert {row["output"] for row in compared.json["rows"]} == {"labels", "labels.scores"}
    assert compared.json["family"] == "pixel-labels"

    models = tmp_path / "models"
    added = bilateral("repository", "add", "pixels", onnx, "--repository", models)
    assert added.code == 0, added.err
    image = model.example(3, np.random.default_rng(0))["image"]
    options = ServerOptions(models, grpc_port=free_ports(1)[0], http_port=None, metrics_port=None)
    with running(options) as server, Client(server.url, timeout_s=120) as client:
        served = client.infer("pixels", {"image": image})["labels"]
    with torch.inference_mode():
        wanted = model(torch.from_numpy(image)).numpy()
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(served, wanted)
