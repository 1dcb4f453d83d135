"""What the front door, TLS and a token cost a request, against the same server; prints it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.builders import tiny_models as models
from tests.serving.front_door.door import OWN_CONNECTION, front_door, request
from tests.serving.server.live_processes import free_ports
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_serving import repository
from bilateral_serving.certificates import development_files
from bilateral_serving.config import Settings
from bilateral_serving.credentials import Credentials, open_channel
from bilateral_serving.server import ServerOptions, running
from bilateral_serving.tokens import make_token

DIGITS = Path(__file__).parents[3] / "export" / "checkpoints" / "digits_bilateral.safetensors"
ONE = request("digits", image=np.zeros((1, 1, 8, 8), dtype=np.float32))
WIDE = 1_200_000
MEGABYTES = request("wide", x=np.zeros((1, WIDE), dtype=np.float32))  # 4.8 of them
LIMITS = [("grpc.max_send_message_length", -1), *OWN_CONNECTION]


@dataclass(frozen=True)
class Cost:
    """Of one way to the server: medians in ms, and requests a second of eight callers."""

    one_ms: float
    megabytes_ms: float
    eight_per_s: float


@dataclass(frozen=True)
class Way:
    """A way to the same models: what it is, where, and what a caller shows."""

    name: str
    url: str
    credentials: Credentials

    def channel(self) -> grpc.Channel:
        """Return a connection of its own."""
        opened: grpc.Channel = open_channel(self.url, LIMITS, self.credentials)
        return opened


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Way]]:
    root = tmp_path_factory.mktemp("cost")
    export_onnx(load_checkpoint(DIGITS), root / "digits.onnx")
    one = Settings(threads=1)
    repository.add("digits", root / "digits.onnx", root / "models", settings=one)
    wide = models.save(
        root / "w.onnx",
        [helper.make_node("ReduceMax", ["x", "axis"], ["largest"])],
        {"x": (TensorProto.FLOAT, ["batch", WIDE])},
        {"largest": (TensorProto.FLOAT, ["batch", 1])},
        {"axis": np.array([1])},
    )
    repository.add("wide", wide, root / "models", settings=one)
    (port,) = free_ports(1)
    options = ServerOptions(
        root / "models", grpc_port=port, http_port=None, metrics_port=None, direct=True
    )
    ca, tls = root / "tls" / "ca.pem", development_files(root / "tls")
    token = make_token("caller", root / "tokens.txt")
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(running(options)).url
        plain, logged, encrypted, asked = (
            stack.enter_context(front_door(root / "models", **given)).url
            for given in (
                {},
                {"access_log": root / "log"},
                {"tls": tls},
                {"tls": tls, "tokens": root / "tokens.txt"},
            )
        )
        yield [
            Way("direct", direct, Credentials()),
            Way("front door", plain, Credentials()),
            Way("with an access log", logged, Credentials()),
            Way("with TLS", encrypted, Credentials(ca=ca)),
            Way("with TLS and token", asked, Credentials(ca=ca, token=token)),
        ]


def milliseconds(
    ways: list[Way], channels: list[grpc.Channel], message: pb.ModelInferRequest, count: int
) -> list[float]:
    """The median of the calls over each connection, which alternate."""
    stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels]
    took = np.zeros((count, len(stubs)))
    for row in took:
        for column, (way, stub) in enumerate(zip(ways, stubs, strict=True)):
            began = time.perf_counter()
            stub.ModelInfer(message, metadata=way.credentials.metadata, timeout=60)
            row[column] = 1e3 * (time.perf_counter() - began)
    return list(np.median(took, axis=0))


def per_second(way: Way, seconds: float) -> float:
    """Answers a second for eight callers, each with a connection of its own."""
    end = time.monotonic() + seconds

    def call(_number: int) -> int:
        count = 0
        with way.channel() as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while time.monotonic() < end:
                stub.ModelInfer(ONE, metadata=way.credentials.metadata, timeout=60)
                count += 1
        return count

    with ThreadPoolExecutor(8) as threads:
        return sum(threads.map(call, range(8))) / seconds


@pytest.mark.slow
@pytest.mark.timing
def test_what_the_front_door_costs(ways: list[Way], capsys: pytest.CaptureFixture[str]) -> None:
    channels = [way.channel() for way in ways]
    milliseconds(ways, channels, ONE, 200)
    ones = milliseconds(ways, channels, ONE, 3000)
    megabytes = milliseconds(ways, channels, MEGABYTES, 100)
    rates = np.mean([[per_second(way, 2) for way in ways] for _ in range(4)], axis=0)
    costs = list(map(Cost, ones, megabytes, rates))
    for channel in channels:
        channel.close()
    with capsys.disabled():
        print()
        for way, cost in zip(ways, costs, strict=True):
            print(
                f"{way.name}: one caller {cost.one_ms:.2f} ms, 4.8 MB {cost.megabytes_ms:.2f} ms, "
                f"eight callers {cost.eight_per_s:.0f}/s"
            )
    # Several times what was measured: a fault in kind, a copy for each byte, say.
    for cost in costs[1:]:
        assert cost.one_ms - costs[0].one_ms < 5
        assert cost.megabytes_ms - costs[0].megabytes_ms < 100
