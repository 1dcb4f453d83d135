"""A server that answers over mutual TLS and asks for tokens, against callers with less."""

from __future__ import annotations

import datetime
import http.client
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from tests.builders import tiny_models as models
from tests.builders.certificates import Authority
from tests.serving.server.live_processes import free_ports
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.certificates import TlsFiles, development_files
from bilateral_serving.client import Client
from bilateral_serving.client.aio import AsyncClient
from bilateral_serving.config import Settings
from bilateral_serving.credentials import CA, CERTIFICATE, KEY, TOKEN_FILE, Credentials
from bilateral_serving.front_door.tls import _Fetcher
from bilateral_serving.server import RunningServer, ServerOptions, running
from bilateral_serving.tokens import make_token, read_tokens


@dataclass(frozen=True)
class Secured:
    """A server, the directory of certificates, the file of tokens, and a token of it."""

    server: RunningServer
    certificates: Path
    tokens: Path
    token: str

    def credentials(self, **changes: object) -> Credentials:
        """Return what a caller needs, with something else in its place."""
        whole = {
            "ca": self.certificates / "ca.pem",
            "certificate": self.certificates / "client.pem",
            "key": self.certificates / "client.key",
            "token": self.token,
        }
        return Credentials(**{**whole, **changes})  # type: ignore[arg-type]

    def client(self, **changes: object) -> Client:
        """Return a client with such credentials."""
        return Client(self.server.url, credentials=self.credentials(**changes))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("secured")
    repository.add(
        "quadrants",
        models.quadrants(root / "s.onnx"),
        root / "models",
        settings=Settings(threads=1),
    )
    files = development_files(root / "certificates")
    token = make_token("alice", root / "tokens.txt")
    port, http_port = free_ports(2)
    options = ServerOptions(
        root / "models",
        grpc_port=port,
        http_port=http_port,
        metrics_port=None,
        tls=files.model_copy(update={"client_ca": root / "certificates" / "ca.pem"}),
        tokens=root / "tokens.txt",
    )
    with running(options) as server:
        yield Secured(server, root / "certificates", root / "tokens.txt", token)


def test_who_has_certificate_and_token_is_served(secured: Secured) -> None:
    with secured.client() as client:
        assert client.is_ready("quadrants")
        assert client.model_metadata("quadrants").name == "quadrants"


def test_over_asyncio_too(secured: Secured) -> None:
    import asyncio

    async def ask() -> bool:
        async with AsyncClient(secured.server.url, credentials=secured.credentials()) as client:
            return (await client.model_metadata("quadrants")).name == "quadrants"

    assert asyncio.run(ask())


def test_commands_take_them_from_options_and_from_the_environment(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = secured.credentials()
    file = tmp_path / "token"
    file.write_text(f"{secured.token}\n")
    for name, value in zip(
        (CA, CERTIFICATE, KEY, TOKEN_FILE),
        (whole.ca, whole.certificate, whole.key, file),
        strict=True,
    ):
        monkeypatch.setenv(name, str(value))
    assert Credentials.from_environment() == whole
    with Client(secured.server.url) as client:
        assert client.is_ready("quadrants")
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "missing"))
    with pytest.raises(UserError, match="missing cannot be read"):
        Credentials.from_environment()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": None}, "bearer token of this server is needed"),
        ({"token": "guessed"}, "bearer token of this server is needed"),
        ({"certificate": None, "key": None}, "closes connections at once"),
        ({"ca": None, "certificate": None, "key": None}, "closes connections at once"),
    ],
)
def test_who_lacks_something_is_told_what(
    secured: Secured, changes: dict[str, None], message: str
) -> None:
    with secured.client(**changes) as client, pytest.raises(UserError, match=message):
        client.model_metadata("quadrants", timeout_s=60)


def test_health_needs_no_token(secured: Secured) -> None:
    with secured.client(token=None) as client:
        assert client.is_ready()
        assert client.is_ready("quadrants")


def test_a_server_of_another_authority_is_not_trusted(secured: Secured, tmp_path: Path) -> None:
    development_files(tmp_path / "others")
    with (
        secured.client(ca=tmp_path / "others" / "ca.pem") as client,
        pytest.raises(UserError, match="no TLS connection"),
    ):
        client.model_metadata("quadrants", timeout_s=60)


def test_a_certificate_of_another_authority_is_not_let_in(secured: Secured, tmp_path: Path) -> None:
    others = tmp_path / "others"
    development_files(others)
    stranger = {"certificate": others / "client.pem", "key": others / "client.key"}
    with secured.client(**stranger) as client, pytest.raises(UserError):
        client.model_metadata("quadrants", timeout_s=60)
    with pytest.raises((ssl.SSLError, OSError)):
        get(secured, "/v2/health/ready", certificates=others, ca=secured.certificates / "ca.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_old_version_of_tls_is_refused(secured: Secured) -> None:
    for url in (secured.server.url, secured.server.http_url):
        assert negotiated(secured, str(url), "-tls1_2")
        assert not negotiated(secured, str(url), "-tls1_1")


def negotiated(secured: Secured, url: str, version: str) -> bool:
    """Return whether openssl, which is told to accept anything, gets a connection."""
    folder = secured.certificates
    command = ["openssl", "s_client", "-connect", url, version, "-cipher", "DEFAULT@SECLEVEL=0"]
    command += ["-CAfile", str(folder / "ca.pem")]
    command += ["-cert", str(folder / "client.pem"), "-key", str(folder / "client.key")]
    found = subprocess.run(
        command, input="", capture_output=True, text=True, timeout=60, check=False
    )
    return "Verify return code: 0" in found.stdout and "Cipher is (NONE)" not in found.stdout


def get(
    secured: Secured,
    path: str,
    *,
    token: str | None = None,
    certificates: Path | None = None,
    ca: Path | None = None,
    body: bytes | None = None,
) -> tuple[int, str]:
    """Return the status and the text of an HTTPS answer."""
    shown = certificates or secured.certificates
    context = ssl.create_default_context(cafile=str(ca or shown / "ca.pem"))
    context.load_cert_chain(shown / "client.pem", shown / "client.key")
    host, _, port = str(secured.server.http_url).rpartition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=60)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_http_asks_for_the_same(secured: Secured) -> None:
    assert get(secured, "/v2/health/ready")[0] == 200
    assert get(secured, "/v2/models/quadrants")[0] == 401
    assert get(secured, "/v2/models/quadrants", token="guessed")[0] == 401
    status, text = get(secured, "/v2/models/quadrants", token=secured.token)
    assert (status, json.loads(text)["name"]) == (200, "quadrants")


def test_plain_http_is_not_answered(secured: Secured) -> None:
    host, _, port = str(secured.server.http_url).rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", "/v2/health/ready")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()


def test_limits_of_a_token_hold_over_both_ways(secured: Secured) -> None:
    slow = make_token("slow", secured.tokens, rate=0.01)
    small = make_token("small", secured.tokens, largest=10)
    body = json.dumps({"inputs": []}).encode()
    infer = "/v2/models/quadrants/infer"
    assert get(secured, infer, token=small, body=body)[0] == 429
    assert get(secured, infer, token=slow, body=body)[0] != 429
    assert get(secured, infer, token=slow, body=body)[0] == 429
    whole = secured.credentials(token=slow)
    with channel(secured, whole) as opened, pytest.raises(grpc.RpcError) as refused:
        service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer(
            pb.ModelInferRequest(model_name="quadrants"), metadata=whole.metadata
        )
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def channel(secured: Secured, credentials: Credentials) -> grpc.Channel:
    """Return a plain gRPC channel with such credentials."""
    from bilateral_serving.credentials import open_channel

    opened: grpc.Channel = open_channel(secured.server.url, (), credentials)
    return opened


def test_a_token_is_withdrawn_without_a_restart(secured: Secured) -> None:
    token = make_token("guest", secured.tokens)
    with secured.client(token=token) as client:
        client.model_metadata("quadrants")
        kept = [line for line in secured.tokens.open() if not line.startswith("guest ")]
        secured.tokens.write_text("".join(kept))
        with pytest.raises(UserError, match="bearer token"):
            client.model_metadata("quadrants")
    assert read_tokens(secured.tokens)


def test_the_token_of_the_start_still_manages(secured: Secured) -> None:
    """`Client` on this machine finds it, and inference with it needs no other."""
    from bilateral_serving.access import find_token

    whole = secured.credentials(token=None)
    with channel(secured, whole) as opened:
        service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelStatistics(
            pb.ModelStatisticsRequest(),
            metadata=(("triton-grpc-protocol-bilateral-token", find_token(secured.server.url)),),
        )


def test_a_renewed_certificate_is_taken_by_new_connections(
    secured: Secured, tmp_path: Path
) -> None:
    files = TlsFiles(certificate=tmp_path / "server.pem", key=tmp_path / "server.key")
    for name in ("server.pem", "server.key"):
        (tmp_path / name).write_bytes((secured.certificates / name).read_bytes())
    fetcher = _Fetcher(files)
    assert fetcher() is None
    development_files(tmp_path / "renewed")
    files.certificate.write_bytes((tmp_path / "renewed" / "server.pem").read_bytes())
    assert fetcher() is None  # the key is still the old one's
    files.key.write_bytes((tmp_path / "renewed" / "server.key").read_bytes())
    assert fetcher() is not None
    assert fetcher() is None


def test_development_files_are_made_once_and_for_this_user(tmp_path: Path) -> None:
    made = development_files(tmp_path / "made", ("example.org", "192.0.2.7"))
    first = made.certificate.read_bytes()
    assert development_files(tmp_path / "made") == made
    assert made.certificate.read_bytes() == first
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "made").iterdir()} == {0}
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(first)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "example.org" in names.get_values_for_type(x509.DNSName)
    assert any(str(ip) == "192.0.2.7" for ip in names.get_values_for_type(x509.IPAddress))
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    assert 80 < left.days <= 90


def test_development_files_are_made_anew_for_another_host_and_never_over_others(
    tmp_path: Path,
) -> None:
    made = development_files(tmp_path / "made")
    first = made.certificate.read_bytes()
    (tmp_path / "elsewhere").write_bytes(b"mine")
    made.key.unlink()
    made.key.symlink_to(tmp_path / "elsewhere")
    development_files(tmp_path / "made", ("192.0.2.7",)).context()
    assert made.certificate.read_bytes() != first
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    Authority.of("ours").sign(tmp_path, "server", days=-1)
    with pytest.raises(UserError, match="not made by --tls-dev"):
        development_files(tmp_path)
