"""What a client needs a server's token for, and what goes through a proxy."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.builders import tiny_models as models
from tests.serving.client.test_shared_memory import check, rows
from tests.serving.server.live_processes import free_ports

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.access import METADATA_KEY, find_token
from bilateral_serving.client import Client
from bilateral_serving.client.shared_memory import Region
from bilateral_serving.config import Settings
from bilateral_serving.server import RunningServer, ServerOptions, running

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str]]:
    """A server whose shared memory needs the token, and the token."""
    root = tmp_path_factory.mktemp("restricted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(root))
        repository.add(
            "arithmetic",
            models.sum_and_product(root / "a.onnx"),
            root / "models",
            settings=Settings(threads=1),
        )
        (port,) = free_ports(1)
        options = ServerOptions(root / "models", grpc_port=port, metrics_port=None)
        with running(options) as server:
            token = find_token(server.url)
            assert token is not None
            yield server, token


def registered(server: RunningServer, token: str) -> list[str]:
    with triton.InferenceServerClient(server.url) as raw:
        return list(raw.get_system_shared_memory_status(headers={METADATA_KEY: token}).regions)


def test_the_token_is_found(restricted: tuple[RunningServer, str]) -> None:
    server, token = restricted
    with Client(server.url) as client:
        check(client.infer("arithmetic", rows(0)), rows(0))
        assert len(registered(server, token)) == 1
    assert registered(server, token) == []


def test_the_token_of_an_earlier_start_is_looked_up_again(
    restricted: tuple[RunningServer, str],
) -> None:
    server, token = restricted
    with Client(server.url) as client:
        check(client.infer("arithmetic", rows(0)), rows(0))
        client._flows._connection()._token = "of an earlier start"
        larger = rows(1, count=3)
        check(client.infer("arithmetic", larger), larger)
        assert len(registered(server, token)) == 2
    assert registered(server, token) == []


def test_a_token_can_be_given(
    restricted: tuple[RunningServer, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, token = restricted
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Client(server.url, token=token) as client:
        check(client.infer("arithmetic", rows(0)), rows(0))
        assert len(registered(server, token)) == 1


def test_without_the_token_inputs_go_into_the_message(
    restricted: tuple[RunningServer, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, token = restricted
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING), Client(server.url) as client:
        check(client.infer("arithmetic", rows(0)), rows(0))
        assert registered(server, token) == []
        assert caplog.messages == []
    with Client(server.url, shared_memory=True, token="another") as client:
        check(client.infer("arithmetic", rows(0)), rows(0))
    (message,) = caplog.messages
    assert "needs the token" in message
    assert token not in message


def test_a_region_can_neither_be_guessed_nor_read_by_others() -> None:
    region, other = Region(1 << 16), Region(1 << 16)
    try:
        status = Path(f"/dev/shm/{region.name}").stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_uid == os.geteuid()
        secret, another = region.name.split(".")[-1], other.name.split(".")[-1]
        assert len(bytes.fromhex(secret)) == 16
        assert secret != another
    finally:
        region.close()
        other.close()


@pytest.mark.parametrize("variable", PROXIES)
def test_a_loopback_address_never_goes_through_a_proxy(
    variable: str, restricted: tuple[RunningServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = restricted
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with Client(server.url) as client:
        assert client.infer("arithmetic", rows(0, length=2)).keys() == {"sum", "product"}


@pytest.mark.parametrize("variable", PROXIES)
def test_elsewhere_the_error_names_the_variable(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://user:secret@127.0.0.1:9")
    with Client("192.0.2.1:8001", timeout_s=60, retries=0) as client:
        with pytest.raises(UserError, match=f"no Triton .* variable {variable} is set") as caught:
            client.infer("digits", {"image": np.zeros(1)})
        assert "secret" not in str(caught.value)
        assert "add 192.0.2.1 to no_proxy" in caught.value.fix


def test_a_socket_in_the_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with (
        Client(f"unix:{tmp_path}/grpc:1", retries=0) as nobody,
        pytest.raises(UserError, match="no Triton server answers at unix:") as caught,
    ):
        nobody.server_name()
    assert "http_proxy" not in str(caught.value)


def test_ipv6() -> None:
    with pytest.raises(UserError, match=r"or \[::1\]:8001"):
        Client("::1:8001")
    (port,) = free_ports(1)
    with (
        Client(f"[::1]:{port}", retries=0) as nobody,
        pytest.raises(UserError, match=rf"answers at \[::1\]:{port}"),
    ):
        nobody.server_name()
