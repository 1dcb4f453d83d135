"""`bilateral token`, and the options of `bilateral serve` that decide who may call."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports

from bilateral_serving import repository
from bilateral_serving.certificates import development_files
from bilateral_serving.config import Settings
from bilateral_serving.tokens import Caller, Tokens


def test_a_token_is_printed_once(bilateral, tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    made = bilateral("token", "bob@example.org", "--file", path)
    assert made.code == 0
    assert Tokens(path).caller(made.out.strip()) == Caller("bob@example.org")
    assert made.out.strip() not in path.read_text()
    assert bilateral("token", "two words", "--file", path).code == 2
    assert bilateral("token", "bob", "--file", path, "--rate", "-1").code == 2
    assert len(path.read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, and certificates."""
    root = tmp_path_factory.mktemp("security")
    one = Settings(threads=1)
    repository.add("m", models.quadrants(root / "m.onnx"), root / "models", settings=one)
    development_files(root)
    return root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "other machines can reach 0.0.0.0"),
        (["--tls-cert", "server.pem"], "TLS needs a certificate and its key"),
        (["--tls-cert", "server.pem", "--tls-key", "client.key"], "no certificate and its key"),
        (["--tls-cert", "no.pem", "--tls-key", "no.key"], "cannot be read"),
        (["--tls-dev", ".", "--tls-cert", "server.pem"], "Give one of them"),
        (["--tls-dev", ".", "--direct"], "front door's"),
        (["--tokens", "none.txt"], "cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_start(
    bilateral, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    (port,) = free_ports(1)
    command = ("serve", "--repository", "models", "--grpc-port", port, "--metrics-port", "0")
    refused = bilateral(*command, *options)
    assert refused.code == 2
    assert message in refused.err


def test_up_too_listens_to_others_only_when_it_is_said_twice(bilateral, tmp_path: Path) -> None:
    port, http = free_ports(2)
    checkpoint = Path(__file__).parents[2] / "export/checkpoints/digits_bilateral.safetensors"
    refused = bilateral(
        "up", checkpoint, "--host", "0.0.0.0", "--grpc-port", port, "--http-port", http,
        "--metrics-port", "0", "--output", tmp_path / "out", "--repository", tmp_path / "models",
    )  # fmt: skip
    assert refused.code == 2
    assert "other machines can reach 0.0.0.0" in refused.err
