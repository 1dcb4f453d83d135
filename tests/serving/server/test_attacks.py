"""What strangers may not do to the server behind a front door, each tried on the real one."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.serving.front_door.door import (
    MANAGER,
    OWN_CONNECTION,
    TOKEN,
    Door,
    front_door,
    request,
    started,
)
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_serving import repository
from bilateral_serving.access import HTTP_HEADER
from bilateral_serving.config import Settings
from bilateral_serving.front_door import FrontDoorOptions

Stub = service_pb2_grpc.GRPCInferenceServiceStub
IMAGE = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
LOGITS = 8 * IMAGE.reshape(1, 4)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    root = tmp_path_factory.mktemp("attacked")
    one = Settings(threads=1)
    repository.add("quadrants", models.quadrants(root / "q.onnx"), root / "models", settings=one)
    alone = Settings(threads=1, max_batch_size=1)
    repository.add("slow", models.slow(root / "s.onnx"), root / "models", settings=alone)
    with front_door(root / "models", http=True) as started:
        yield started


@pytest.fixture
def stub(door: Door) -> Iterator[Stub]:
    with door.stub() as connected:
        yield connected


@pytest.fixture(autouse=True)
def others_are_served(door: Door) -> Iterator[None]:
    """After each attack the same server answers somebody else, and rightly."""
    before = door.triton.pid
    yield
    with door.stub() as stub:
        for _ in range(3):
            assert np.array_equal(logits(stub), LOGITS)
    assert door.triton.pid == before
    assert door.triton.poll() is None
    assert door.process.poll() is None


def logits(stub: Stub) -> np.ndarray:
    answer = stub.ModelInfer(request("quadrants", pixel_values=IMAGE), timeout=30)
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(1, 4)


def refused(call: Callable[..., Any], message: Any, code: str = "PERMISSION_DENIED") -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=60)
    assert caught.value.code().name == code, caught.value
    return str(caught.value.details())


def http_call(
    door: Door, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(door.http_url or "", timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def infer_json(**changes: Any) -> bytes:
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": [1, 1, 2, 2]}
    return json.dumps({"inputs": [{**tensor, "data": IMAGE.ravel().tolist(), **changes}]}).encode()


# A model that says so if anything runs it.
INTRUDER = """
import pathlib
pathlib.Path({path!r}).write_text("it ran")
class TritonPythonModel:
    def execute(self, requests):
        return []
"""
INTRUDER_CONFIG = {
    "backend": "python",
    "max_batch_size": 0,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
}


def load_request(trace: Path) -> pb.RepositoryModelLoadRequest:
    message = pb.RepositoryModelLoadRequest(model_name="intruder")
    message.parameters["config"].string_param = json.dumps(INTRUDER_CONFIG)
    message.parameters["file:1/model.py"].bytes_param = INTRUDER.format(path=str(trace)).encode()
    return message


class TestManagementOverGrpc:
    def test_a_stranger_loads_no_code(self, stub: Stub, tmp_path: Path) -> None:
        text = refused(stub.RepositoryModelLoad, load_request(tmp_path / "trace"))
        assert "RepositoryModelLoad needs the token" in text
        assert not (tmp_path / "trace").exists()

    def test_the_attack_works_with_the_token(self, stub: Stub, tmp_path: Path) -> None:
        # Or the test above would pass of an attack that is none.
        trace = tmp_path / "trace"
        stub.RepositoryModelLoad(load_request(trace), metadata=MANAGER, timeout=60)
        assert trace.read_text() == "it ran"
        gone = pb.RepositoryModelUnloadRequest(model_name="intruder")
        stub.RepositoryModelUnload(gone, metadata=MANAGER, timeout=60)

    @pytest.mark.parametrize(
        ("method", "message"),
        [
            ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="quadrants")),
            ("RepositoryIndex", pb.RepositoryIndexRequest()),
            ("ModelStatistics", pb.ModelStatisticsRequest()),
            ("LogSettings", pb.LogSettingsRequest()),
            ("TraceSetting", pb.TraceSettingRequest()),
            ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
            (
                "SystemSharedMemoryRegister",
                pb.SystemSharedMemoryRegisterRequest(name="mine", key="/x", byte_size=16),
            ),
            ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
            ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
            ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="mine")),
            ("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest()),
        ],
    )
    def test_is_closed(self, stub: Stub, method: str, message: Any) -> None:
        assert f"{method} needs the token" in refused(getattr(stub, method), message)

    @pytest.mark.parametrize("shown", ["", "wrong", TOKEN[:-1], TOKEN + "x"])
    def test_a_wrong_token_opens_nothing(self, stub: Stub, shown: str) -> None:
        wrong = ((MANAGER[0][0], shown),)
        with pytest.raises(grpc.RpcError) as caught:
            stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=wrong, timeout=60)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    def test_the_right_one_opens_it(self, stub: Stub) -> None:
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=MANAGER, timeout=60)
        assert {"quadrants", "slow"} <= {model.name for model in index.models}

    def test_methods_that_nobody_knows_are_closed(self, door: Door) -> None:
        with grpc.insecure_channel(door.url, options=OWN_CONNECTION) as channel:
            refused(channel.unary_unary("/inference.GRPCInferenceService/Future"), b"")
            refused(channel.unary_unary("/grpc.reflection.v1.ServerReflection/Info"), b"")


class TestSharedMemory:
    """A manager's region is neither read nor written by a stranger's request."""

    @pytest.fixture
    def region(self, stub: Stub) -> Iterator[shared_memory.SharedMemory]:
        memory = shared_memory.SharedMemory(create=True, size=64)
        memory.buf[:16] = IMAGE.tobytes()
        known = pb.SystemSharedMemoryRegisterRequest(
            name="theirs", key=f"/{memory.name.lstrip('/')}", byte_size=64
        )
        stub.SystemSharedMemoryRegister(known, metadata=MANAGER, timeout=60)
        yield memory
        gone = pb.SystemSharedMemoryUnregisterRequest(name="theirs")
        stub.SystemSharedMemoryUnregister(gone, metadata=MANAGER, timeout=60)
        memory.close()
        memory.unlink()

    @staticmethod
    def refer(tensor: Any, offset: int = 0) -> None:
        tensor.parameters["shared_memory_region"].string_param = "theirs"
        tensor.parameters["shared_memory_byte_size"].int64_param = 16
        tensor.parameters["shared_memory_offset"].int64_param = offset

    def reading(self) -> pb.ModelInferRequest:
        message = request("quadrants", pixel_values=IMAGE)
        del message.raw_input_contents[:]
        self.refer(message.inputs[0])
        return message

    def writing(self) -> pb.ModelInferRequest:
        message = request("quadrants", pixel_values=IMAGE)
        self.refer(message.outputs.add(name="logits"), 32)
        return message

    def test_is_not_read(self, stub: Stub, region: shared_memory.SharedMemory) -> None:
        assert "shared memory needs the token" in refused(stub.ModelInfer, self.reading())

    def test_is_not_written(self, stub: Stub, region: shared_memory.SharedMemory) -> None:
        refused(stub.ModelInfer, self.writing())
        assert bytes(region.buf[32:48]) == bytes(16)

    def test_is_not_reached_by_a_stream(
        self, stub: Stub, region: shared_memory.SharedMemory
    ) -> None:
        for message in (self.reading(), self.writing()):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ModelStreamInfer(iter([message]), timeout=60))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert bytes(region.buf[32:48]) == bytes(16)

    @pytest.mark.parametrize("escaped", [False, True])
    def test_is_not_reached_over_http(
        self, door: Door, region: shared_memory.SharedMemory, escaped: bool
    ) -> None:
        parameters = {"shared_memory_region": "theirs", "shared_memory_byte_size": 16}
        message = json.loads(infer_json(parameters=parameters))
        del message["inputs"][0]["data"]
        body = json.dumps(message).encode()
        if escaped:
            body = body.replace(b"shared_memory", rb"\u0073hared_memory")
        status, text = http_call(door, "POST", "/v2/models/quadrants/infer", body)
        assert (status, b"shared memory needs the token" in text) == (403, True)

    def test_serves_who_shows_the_token(
        self, stub: Stub, region: shared_memory.SharedMemory
    ) -> None:
        both = self.reading()
        self.refer(both.outputs.add(name="logits"), 32)
        stub.ModelInfer(both, metadata=MANAGER, timeout=60)
        assert np.array_equal(np.frombuffer(bytes(region.buf[32:48]), np.float32), LOGITS[0])

    def test_a_tensor_may_contain_its_name(self, stub: Stub) -> None:
        # Only the parameter's name is refused: pixels whose bytes spell it are pixels.
        text = b"shared_memory_region".ljust(32)
        image = np.frombuffer(text, np.float32).reshape(2, 1, 2, 2)
        answer = stub.ModelInfer(request("quadrants", pixel_values=image), timeout=60)
        got = np.frombuffer(answer.raw_output_contents[0], np.float32)
        assert np.array_equal(got, 8 * image.ravel())

    def test_a_text_beside_the_tensors_may_contain_it_too(self, stub: Stub) -> None:
        message = request("quadrants", pixel_values=IMAGE)
        message.id = "shared_memory_region"
        assert stub.ModelInfer(message, timeout=60).id == "shared_memory_region"


class TestManagementOverHttp:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v2/repository/index"),
            ("POST", "/v2/repository/models/quadrants/load"),
            ("POST", "/v2/repository/models/quadrants/unload"),
            ("GET", "/v2/models/stats"),
            ("GET", "/v2/models/quadrants/stats"),
            ("GET", "/v2/models/quadrants/versions/1/stats"),
            ("GET", "/v2/logging"),
            ("POST", "/v2/logging"),
            ("GET", "/v2/trace/setting"),
            ("POST", "/v2/models/quadrants/trace/setting"),
            ("GET", "/v2/systemsharedmemory/status"),
            ("POST", "/v2/systemsharedmemory/region/x/register"),
            ("POST", "/v2/systemsharedmemory/unregister"),
            ("GET", "/v2/cudasharedmemory/status"),
            ("POST", "/v2/cudasharedmemory/region/x/register"),
            ("GET", "/metrics"),
            ("POST", "/v2/models/quadrants/../../repository/index"),
            ("POST", "/v2/models/quadrants/infer/../../../repository/index"),
            ("POST", "/v2/models/%2e%2e/infer"),
            ("POST", "//v2/repository/index"),
        ],
    )
    def test_is_closed(self, door: Door, method: str, path: str) -> None:
        assert http_call(door, method, path, b"{}")[0] == 403

    def test_the_token_opens_it(self, door: Door) -> None:
        shown = {HTTP_HEADER: TOKEN}
        status, text = http_call(door, "POST", "/v2/repository/index", b"{}", **shown)
        assert status == 200
        assert {"quadrants", "slow"} <= {model["name"] for model in json.loads(text)}

    def test_what_is_open_is_answered(self, door: Door) -> None:
        for path in (
            "/v2",
            "/v2/health/live",
            "/v2/models/quadrants",
            "/v2/models/quadrants/versions/1/config",
            "/v2/models/quadrants/ready",
        ):
            assert http_call(door, "GET", path)[0] == 200, path
        status, text = http_call(door, "POST", "/v2/models/quadrants/infer", infer_json())
        assert status == 200
        assert json.loads(text)["outputs"][0]["data"] == LOGITS[0].tolist()

    def test_binary_tensors_are_passed_on(self, door: Door) -> None:
        message = json.loads(infer_json(parameters={"binary_data_size": 16}))
        del message["inputs"][0]["data"]
        message["parameters"] = {"binary_data_output": True}
        head = json.dumps(message).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        status, body = http_call(
            door, "POST", "/v2/models/quadrants/infer", head + IMAGE.tobytes(), **length
        )
        assert status == 200
        assert np.array_equal(np.frombuffer(body[-16:], np.float32), LOGITS[0])


class TestPagesInABrowser:
    @pytest.mark.parametrize("origin", ["http://example.org", "null", "http://127.0.0.1:1"])
    @pytest.mark.parametrize("path", ["/v2/models/quadrants/infer", "/v2/repository/models/x/load"])
    def test_of_other_origins_are_refused(self, door: Door, path: str, origin: str) -> None:
        plain = {"Content_Type": "text/plain"}  # what a form sends without asking first
        assert http_call(door, "POST", path, infer_json(), Origin=origin, **plain)[0] == 403

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.2", "[::1]", ""])
    def test_that_know_this_machine_by_another_name_are_refused(
        self, door: Door, host: str
    ) -> None:
        assert http_call(door, "GET", "/v2", Host=host)[0] == 421

    @pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1"])
    def test_its_own_names_are_known(self, door: Door, host: str) -> None:
        assert http_call(door, "GET", "/v2", Host=host)[0] == 200


class TestBodiesThatEndTriton:
    @pytest.mark.parametrize(
        "path",
        [
            "/v2/models/quadrants/infer",
            "/v2/models/quadrants/generate",
            "/v2/models/quadrants/generate_stream",
            "/v2/repository/index",
            "/v2/repository/models/quadrants/load",
            "/v2/systemsharedmemory/region/x/register",
            "/v2/logging",
            "/v2/trace/setting",
        ],
    )
    @pytest.mark.parametrize("closed", [True, False])
    @pytest.mark.parametrize("opening", [b"[", b'{"a":'])
    def test_deep_json(self, door: Door, path: str, closed: bool, opening: bytes) -> None:
        body = b'{"x":' + opening * 200_000 + b"0"
        if closed:
            body += (b"]" if opening == b"[" else b"}") * 200_000 + b"}"
        status, text = http_call(door, "POST", path, body, **{HTTP_HEADER: TOKEN})
        assert (status, b"deep" in text) == (400, True)

    def test_deep_json_behind_a_false_header_length(self, door: Door) -> None:
        body = b"{}" + b"[" * 200_000
        # Of an inference request Triton parses so many bytes, of any other the whole body.
        false = {"Inference-Header-Content-Length": "2", HTTP_HEADER: TOKEN}
        for path, text in (("infer", b"inputs"), ("generate", b"deep")):
            status, answer = http_call(door, "POST", f"/v2/models/quadrants/{path}", body, **false)
            assert status >= 400
            assert text in answer

    def test_brackets_in_a_text_are_not_nesting(self, door: Door) -> None:
        body = infer_json(parameters={"text": '\\"[' * 1000})
        assert http_call(door, "POST", "/v2/models/quadrants/infer", body)[0] == 200

    def test_one_byte_chunks(self, door: Door) -> None:
        host, _, port = (door.http_url or "").rpartition(":")
        head = (
            "POST /v2/models/quadrants/infer HTTP/1.1\r\nHost: localhost\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode())
            try:
                for _ in range(60):
                    connection.sendall(b"1\r\n \r\n" * 10_000)
            except OSError:
                return  # it was answered and closed before all was sent
            assert connection.recv(100).startswith(b"HTTP/1.1 411")

    def test_compressed_bodies(self, door: Door) -> None:
        packed = {"Content_Encoding": "gzip"}
        assert http_call(door, "POST", "/v2/models/quadrants/infer", b"x", **packed)[0] == 415

    def test_bodies_that_are_too_large(self, door: Door) -> None:
        host, _, port = (door.http_url or "").rpartition(":")
        head = b"POST /v2/models/quadrants/infer HTTP/1.1\r\nHost: localhost\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head + b"Content-Length: 99999999999\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")

    @pytest.mark.parametrize("length", ["-1", "99999", "x", "0x2", "1e1"])
    def test_header_lengths_that_cannot_be(self, door: Door, length: str) -> None:
        status, _ = http_call(
            door,
            "POST",
            "/v2/models/quadrants/infer",
            infer_json(),
            **{"Inference-Header-Content-Length": length},
        )
        assert status == 400


class TestBytes:
    def test_garbage_on_either_port(self, door: Door) -> None:
        chance = np.random.default_rng(0)
        for url in (door.url, door.http_url or ""):
            host, _, port = url.rpartition(":")
            for size in (1, 10, 100, 1000, 10_000) * 6:
                with socket.create_connection((host, int(port)), timeout=30) as connection:
                    try:
                        connection.sendall(chance.bytes(size))
                    except OSError:
                        continue

    def test_garbage_after_the_preface(self, door: Door) -> None:
        chance = np.random.default_rng(1)
        host, _, port = door.url.rpartition(":")
        for size in (9, 100, 10_000) * 5:
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                try:
                    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.bytes(size))
                except OSError:
                    continue

    def test_messages_that_are_none(self, door: Door) -> None:
        chance = np.random.default_rng(2)
        with grpc.insecure_channel(door.url, options=OWN_CONNECTION) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            whole = request("quadrants", pixel_values=IMAGE).SerializeToString()
            codes = set()
            for _ in range(200):
                damaged = bytearray(whole)
                damaged[chance.integers(len(damaged))] = chance.integers(256)
                answer = call.future(
                    bytes(damaged[: chance.integers(len(damaged) + 1)]), timeout=60
                )
                codes.add(answer.code().name)
            assert "INVALID_ARGUMENT" in codes
            assert not codes & {"UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED"}, codes

    @pytest.mark.parametrize("compression", list(grpc.Compression))
    def test_messages_that_are_too_large(self, compression: grpc.Compression) -> None:
        # Compressed, it is a few kilobytes on the way.
        options = FrontDoorOptions(
            listen="127.0.0.1:0", upstream="unix:/nowhere", token=TOKEN, message_bytes=1 << 20
        )
        process, listening = started(options)
        message = request("quadrants", pixel_values=np.zeros((1 << 18, 1, 2, 2), np.float32))
        with grpc.insecure_channel(
            listening.grpc, [*OWN_CONNECTION, ("grpc.max_send_message_length", -1)], compression
        ) as channel:
            refused(Stub(channel).ModelInfer, message, "RESOURCE_EXHAUSTED")
        process.terminate()
        assert process.wait(60) == 0

    def test_connections_that_say_nothing_keep_nobody_out(self, door: Door) -> None:
        silent = []
        for url in (door.url, door.http_url or ""):
            host, _, port = url.rpartition(":")
            for _ in range(200):
                silent.append(socket.create_connection((host, int(port)), timeout=30))
                silent[-1].send(b"P")
        with door.stub() as stub:
            assert np.array_equal(logits(stub), LOGITS)
        assert http_call(door, "GET", "/v2/health/live")[0] == 200
        for connection in silent:
            connection.close()
