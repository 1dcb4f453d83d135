"""A front door with mutual TLS and tokens, against callers who have none, and while both change."""

from __future__ import annotations

import queue
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.builders.certificates import Authority
from tests.serving.front_door.door import OWN_CONNECTION, Door, front_door, request
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_serving import repository
from bilateral_serving.certificates import TlsFiles
from bilateral_serving.config import Settings
from bilateral_serving.tokens import hash_of, make_token

Stub = service_pb2_grpc.GRPCInferenceServiceStub
Pair = tuple[Path, Path]
ONE = request("quadrants", pixel_values=np.zeros((1, 1, 2, 2), dtype=np.float32))


@dataclass(frozen=True)
class Secured:
    """A front door, whose files the tests replace, and what a caller needs."""

    door: Door
    files: TlsFiles
    tokens: Path
    authority: Authority
    folder: Path
    caller: Pair

    def channel(self, caller: Pair | None = None) -> grpc.Channel:
        """Return a new connection that shows a caller's certificate."""
        certificate, key = (path.read_bytes() for path in caller or self.caller)
        whole = grpc.ssl_channel_credentials(self.authority.pem, key, certificate)
        return grpc.secure_channel(self.door.url, whole, options=LIMITS)

    def curl(self, *arguments: str) -> str:
        """Return the status of an answer to curl over HTTPS; "000": it got none."""
        ca = self.folder / "trusted.pem"
        ca.write_bytes(self.authority.pem)
        url = f"https://{self.door.http_url}/v2/health/ready"
        command = ["curl", "-s", "-m", "60", "-w", "%{http_code}", "--noproxy", "*"]
        command += ["--cacert", str(ca), *arguments, url]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def shows(self, url: str | None) -> int:
        """Return the serial number of the certificate that a new connection is shown."""
        from cryptography import x509

        host, _, port = str(url).rpartition(":")
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        context.load_cert_chain(*self.caller)
        if url == self.door.url:
            context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, int(port)), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


LIMITS = [("grpc.max_send_message_length", -1), *OWN_CONNECTION]
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("secured")
    one = Settings(threads=1)
    repository.add("quadrants", models.quadrants(root / "m.onnx"), root / "models", settings=one)
    authority = Authority.of("ours")
    certificate, key = authority.sign(root, "server")
    (root / "callers.pem").write_bytes(authority.pem)
    files = TlsFiles(certificate=certificate, key=key, client_ca=root / "callers.pem")
    make_token("anybody", root / "tokens.txt")
    with front_door(root / "models", http=True, tls=files, tokens=root / "tokens.txt") as door:
        caller = authority.sign(root, "caller")
        yield Secured(door, files, root / "tokens.txt", authority, root, caller)


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


def code(call: Callable[[], object]) -> grpc.StatusCode:
    """Return the status that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        status: grpc.StatusCode = error.code()
        return status
    return grpc.StatusCode.OK


def withdraw(secured: Secured, token: str) -> None:
    """Remove a token's line, as an editor would: whole or not at all."""
    kept = [line for line in secured.tokens.open() if hash_of(token) not in line]
    draft = secured.tokens.with_suffix(".new")
    draft.write_text("".join(kept))
    draft.replace(secured.tokens)


def test_an_expired_certificate_is_not_let_in(secured: Secured, tmp_path: Path) -> None:
    expired = secured.authority.sign(tmp_path, "expired", days=-1)
    token = make_token("late", secured.tokens)
    with secured.channel(expired) as channel:
        infer = Stub(channel).ModelInfer
        assert code(lambda: infer(ONE, metadata=bearer(token), timeout=60)).name == "UNAVAILABLE"
    with secured.channel() as channel:
        Stub(channel).ModelInfer(ONE, metadata=bearer(token), timeout=60)


@needs_curl
def test_https_lets_in_who_shows_a_certificate_that_holds(secured: Secured, tmp_path: Path) -> None:
    def show(pair: Pair) -> list[str]:
        return ["--cert", str(pair[0]), "--key", str(pair[1])]

    expired = secured.authority.sign(tmp_path, "expired", days=-1)
    stranger = Authority.of("theirs").sign(tmp_path, "stranger")
    assert secured.curl(*show(secured.caller)) == "200"
    assert secured.curl() == "000"
    assert secured.curl(*show(expired)) == "000"
    assert secured.curl(*show(stranger)) == "000"


def test_grpc_without_tls_is_not_answered(secured: Secured) -> None:
    with secured.door.stub() as stub:
        live = pb.ServerLiveRequest()
        assert code(lambda: stub.ServerLive(live, timeout=60)).name == "UNAVAILABLE"
    with secured.channel() as channel:
        assert Stub(channel).ServerLive(live, timeout=60).live


def test_a_strangers_message_is_not_read(secured: Secured) -> None:
    large = pb.ModelInferRequest(model_name="quadrants", raw_input_contents=[bytes(256 << 20)])
    before = peak_bytes(secured.door.process.pid)
    with secured.channel() as channel:
        infer = Stub(channel).ModelInfer
        refused = code(lambda: infer(large, metadata=bearer("guessed"), timeout=60))
    assert refused == grpc.StatusCode.UNAUTHENTICATED
    assert peak_bytes(secured.door.process.pid) - before < 128 << 20


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(
        int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")
    )


def test_a_stream_does_not_outlive_its_token(secured: Secured) -> None:
    token = make_token("streaming", secured.tokens)
    requests: queue.Queue[pb.ModelInferRequest] = queue.Queue()
    with secured.channel() as channel:
        stream = Stub(channel).ModelStreamInfer(
            iter(requests.get, None), metadata=bearer(token), timeout=60
        )
        requests.put(ONE)
        assert not next(stream).error_message
        withdraw(secured, token)
        requests.put(ONE)
        assert code(lambda: next(stream)) == grpc.StatusCode.UNAUTHENTICATED
        requests.put(None)


def test_a_token_is_rotated_under_load(secured: Secured) -> None:
    """Who has the new one loses no request; the old one is refused from one call on, for good."""
    old = make_token("rotating", secured.tokens)
    new = make_token("rotating", secured.tokens)
    end = threading.Event()
    statuses: dict[str, list[str]] = {old: [], new: []}

    def ask(token: str) -> None:
        with secured.channel() as channel:
            infer = Stub(channel).ModelInfer
            while not end.is_set():
                found = code(lambda: infer(ONE, metadata=bearer(token), timeout=60))
                statuses[token].append(found.name)

    threads = [threading.Thread(target=ask, args=(token,)) for token in (old, new)]
    for thread in threads:
        thread.start()
    until(lambda: min(map(len, statuses.values())) > 20)
    withdraw(secured, old)
    until(lambda: "UNAUTHENTICATED" in statuses[old][-20:-10])
    end.set()
    for thread in threads:
        thread.join()
    first = statuses[old].index("UNAUTHENTICATED")
    assert set(statuses[old][:first]) == {"OK"}
    assert set(statuses[old][first:]) == {"UNAUTHENTICATED"}
    assert set(statuses[new]) == {"OK"}


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; fail after a minute."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_renewed_certificate_is_shown_to_new_connections(
    secured: Secured, tmp_path: Path
) -> None:
    ways = (secured.door.url, secured.door.http_url)
    before = [secured.shows(way) for way in ways]
    with secured.channel() as channel:
        live = Stub(channel).ServerLive
        live(pb.ServerLiveRequest(), timeout=60)
        certificate, key = secured.authority.sign(tmp_path, "renewed")
        certificate.replace(secured.files.certificate)
        assert [secured.shows(way) for way in ways] == before  # its key is still to come
        key.replace(secured.files.key)
        until(lambda: not {secured.shows(way) for way in ways} & set(before))
        assert live(pb.ServerLiveRequest(), timeout=60).live  # the connection of before


def test_a_withdrawn_authority_lets_nobody_in(secured: Secured, tmp_path: Path) -> None:
    """Last in this module: it puts the authority back, which new connections see a little later."""
    assert secured.files.client_ca is not None
    others = Authority.of("others")
    draft = tmp_path / "callers.pem"
    draft.write_bytes(others.pem)
    draft.replace(secured.files.client_ca)
    for way in (secured.door.url, secured.door.http_url):
        until(lambda way=way: not _is_let_in(secured, way, secured.caller))  # type: ignore[misc]
        assert _is_let_in(secured, way, others.sign(tmp_path, "newcomer"))
    draft.write_bytes(secured.authority.pem)
    draft.replace(secured.files.client_ca)


def _is_let_in(secured: Secured, way: str | None, caller: Pair) -> bool:
    """Return whether a certificate gets an answer, over gRPC or HTTP."""
    if way == secured.door.url:
        with secured.channel(caller) as channel:
            live = Stub(channel).ServerLive
            return code(lambda: live(pb.ServerLiveRequest(), timeout=60)).name == "OK"
    host, _, port = str(way).rpartition(":")
    context = ssl.create_default_context(cadata=secured.authority.pem.decode())
    context.load_cert_chain(*caller)
    try:
        with (
            socket.create_connection((host, int(port)), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
