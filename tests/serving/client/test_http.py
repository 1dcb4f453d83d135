"""The clients over HTTP and HTTPS, against real servers: what they say and how they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.certificates import development_files
from bilateral_serving.client import AsyncClient, Client
from bilateral_serving.config import Settings
from bilateral_serving.credentials import Credentials
from bilateral_serving.server import RunningServer, ServerOptions, running
from bilateral_serving.tokens import make_token


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningServer, Credentials]]:
    root = tmp_path_factory.mktemp("https")
    one = Settings(threads=1)
    repository.add("copies", models.copies(root / "c.onnx"), root / "models", settings=one)
    repository.add("quadrants", models.quadrants(root / "q.onnx"), root / "models", settings=one)
    files = development_files(root / "certificates")
    token = make_token("alice", root / "tokens.txt")
    port, http_port = free_ports(2)
    options = ServerOptions(
        root / "models",
        grpc_port=port,
        http_port=http_port,
        metrics_port=None,
        tls=files,
        tokens=root / "tokens.txt",
    )
    with running(options) as server:
        yield server, Credentials(ca=root / "certificates" / "ca.pem", token=token)


@pytest.fixture
def both(secured: tuple[RunningServer, Credentials]) -> Iterator[tuple[Client, Client]]:
    """A client of HTTPS, and one of gRPC."""
    server, credentials = secured
    with (
        Client(f"https://{server.http_url}", credentials=credentials) as https,
        Client(server.url, credentials=credentials) as grpc,
    ):
        yield https, grpc


def test_says_what_grpc_says(both: tuple[Client, Client]) -> None:
    https, grpc = both
    assert https.is_ready()
    assert https.is_ready("copies")
    assert not https.is_ready("unknown")
    assert https.server_name() == grpc.server_name()
    assert https.model_config("quadrants") == grpc.model_config("quadrants")
    assert https.model_metadata("quadrants") == grpc.model_metadata("quadrants")
    assert https.model_metadata("quadrants", version=1) == grpc.model_metadata("quadrants")


def test_carries_every_element_type(both: tuple[Client, Client]) -> None:
    https, grpc = both
    arrays = {
        spec.name: np.array([[0, 1], [1, 0], [1, 1]], dtype=spec.dtype)
        for spec in https.model_metadata("copies").inputs
    }
    answer, other = https.infer("copies", arrays), grpc.infer("copies", arrays)
    assert list(answer) == list(other)
    assert len(answer) == 11
    for name, array in answer.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


def test_over_asyncio_with_more_calls_than_threads(
    secured: tuple[RunningServer, Credentials],
) -> None:
    server, credentials = secured

    async def ask() -> list[dict[str, np.ndarray]]:
        url = f"https://{server.http_url}"
        async with AsyncClient(url, credentials=credentials, timeout_s=120) as client:
            pixels = [np.full((1, 1, 2, 2), i, np.float32) for i in range(100)]
            return await asyncio.gather(
                *(client.infer("quadrants", {"pixel_values": one}) for one in pixels)
            )

    answers = asyncio.run(ask())
    assert [answer["logits"][0, 0] for answer in answers] == [8 * i for i in range(100)]


@pytest.mark.parametrize(
    ("url", "credentials", "message"),
    [
        ("https://{http}", Credentials(), "no TLS connection to https://.*CERTIFICATE_VERIFY"),
        ("http://{http}", Credentials(), "connection to http://.* broke"),
        ("https://{grpc}", None, "not a Triton server|broke"),
        ("https://127.0.0.1:{free}", None, "no Triton server answers at https://"),
    ],
    ids=["no CA", "no TLS", "the gRPC port", "nobody"],
)
def test_errors_are_one_line(
    secured: tuple[RunningServer, Credentials],
    url: str,
    credentials: Credentials | None,
    message: str,
) -> None:
    server, whole = secured
    url = url.format(http=server.http_url, grpc=server.url, free=free_ports(1)[0])
    with Client(url, credentials=credentials or whole) as client, pytest.raises(UserError) as error:
        client.model_metadata("quadrants")
    assert error.match(message)
    assert "\n" not in str(error.value)


def test_a_token_is_asked_for(secured: tuple[RunningServer, Credentials]) -> None:
    server, whole = secured
    url, stranger = f"https://{server.http_url}", Credentials(ca=whole.ca, token="none")
    with (
        Client(url, credentials=stranger) as client,
        pytest.raises(UserError, match=r"bearer token .* is needed"),
    ):
        client.model_metadata("quadrants")
    with (
        Client(url, credentials=whole) as client,
        pytest.raises(UserError, match="model 'unknown' is not served"),
    ):
        client.model_metadata("unknown")


def test_files_that_are_not_pem_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with (
        Client("https://localhost:1", credentials=Credentials(ca=file)) as client,
        pytest.raises(UserError, match="TLS files cannot be used"),
    ):
        client.server_name()
