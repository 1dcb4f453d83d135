"""What calls carry: a caller's metadata and OpenTelemetry's traceparent, as a server sees them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_export.errors import UserError
from bilateral_serving.client import Client


class Listening(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A gRPC server that keeps the metadata of each call, which Triton does not tell."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen.append(dict(context.invocation_metadata()))
        return pb.ServerMetadataResponse(name="listening")


@pytest.fixture
def listening() -> Iterator[tuple[str, Listening]]:
    servicer = Listening()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def test_metadata_is_carried(listening: tuple[str, Listening]) -> None:
    url, servicer = listening
    with Client(url, metadata={"x-team": "vision"}) as client:
        client.server_name()
    numbers = iter(("1", "2"))
    with Client(url, metadata=lambda: {"x-number": next(numbers)}) as client:
        client.server_name()
        client.server_name()
    assert servicer.seen[0]["x-team"] == "vision"
    assert [seen["x-number"] for seen in servicer.seen[1:]] == ["1", "2"]
    assert "traceparent" not in servicer.seen[0]


@pytest.mark.parametrize("wrong", [{"X": "1"}, {"x": "ä"}, {"x": "a\nb"}, {"": "1"}, {"x-bin": ""}])
def test_metadata_that_cannot_be_sent(
    wrong: dict[str, str], listening: tuple[str, Listening]
) -> None:
    with Client(listening[0], metadata=wrong) as client, pytest.raises(UserError, match="metadata"):
        client.server_name()
    assert not listening[1].seen


def test_channel_options_reach_grpc(listening: tuple[str, Listening]) -> None:
    options = [("grpc.primary_user_agent", "of-a-test")]
    with Client(listening[0], channel_options=options) as client:
        client.server_name()
    assert listening[1].seen[0]["user-agent"].startswith("of-a-test")


def test_a_client_span_names_itself_to_the_server(listening: tuple[str, Listening]) -> None:
    """In a process of its own, which sets OpenTelemetry up for good."""
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    url, servicer = listening
    program = """
        import sys
        from bilateral_serving.client import Client
        assert not any(name.startswith("opentelemetry") for name in sys.modules)
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(provider)
        with Client(sys.argv[1]) as client:
            with trace.get_tracer("test").start_as_current_span("parent"):
                client.server_name()
        child, parent = spans.get_finished_spans()
        assert child.parent.span_id == parent.context.span_id
        print(f"00-{child.context.trace_id:032x}-{child.context.span_id:016x}-",
              child.kind.name, child.attributes["rpc.method"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), url],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    traceparent, kind, method = done.stdout.split()
    assert servicer.seen[-1]["traceparent"].startswith(traceparent)
    assert (kind, method) == ("CLIENT", "ServerMetadata")
