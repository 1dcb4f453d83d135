"""Where a file is prepared: the measurement, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports

from bilateral_benchmarks.experiments.raw_input import CLIENT, READY, SERVER, measure_raw_input
from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("raw_input")
    for name in ("files", "tensors"):
        model = models.quadrants(root / f"{name}.onnx")
        settings = Settings(raw=name == "files", threads=1)
        repository.add(name, model, root / "models", settings=settings)
    (port,) = free_ports(1)
    options = ServerOptions(root / "models", grpc_port=port, http_port=None, metrics_port=None)
    with running(options) as server:
        yield server.url


def test_every_way_is_measured(url: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), "red").save(photo)
    found = measure_raw_input(url, "files", photo, rounds=1, seconds=0.1)
    assert [way.name for way in found.ways] == [CLIENT, SERVER, READY]
    assert all(way.p50_ms > 0 and way.per_s > 0 for way in found.ways)
    assert found.file_bytes == photo.stat().st_size
    assert found.tensor_bytes == 4 * 4
    assert found.share == pytest.approx(found.prepare_ms / found.ways[1].p50_ms)
    with pytest.raises(UserError, match="takes tensors only"):
        measure_raw_input(url, "tensors", photo)
