"""Client spans of OpenTelemetry, where the program has loaded it; else nothing is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bilateral_serving.client.call_metadata import Pairs


def begin(method: str, url: str) -> tuple[Pairs, Callable[[Future[Any]], None]] | None:
    """Begin the span of a call; None where the program has not loaded OpenTelemetry.

    Args:
        method: The call, such as "ModelInfer".
        url: "host:port", with the scheme if it is HTTP.

    Returns:
        The metadata that names the span to the server (`traceparent`, as the program's propagator
        writes it), and what ends the span, to be called with the call's future.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import propagate, trace

    scheme, _, address = url.rpartition("://")
    host, _, port = address.rpartition(":")
    span = trace.get_tracer("bilateral_serving.client").start_span(
        f"inference.GRPCInferenceService/{method}",
        kind=trace.SpanKind.CLIENT,
        attributes={
            "rpc.system": "http" if scheme else "grpc",
            "rpc.service": "inference.GRPCInferenceService",
            "rpc.method": method,
            "server.address": host,
            "server.port": int(port),
        },
    )
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))

    def end(call: Future[Any]) -> None:
        error = None if call.cancelled() else call.exception()
        if error is not None:
            span.record_exception(error)
            span.set_status(trace.StatusCode.ERROR, str(error))
        span.end()

    return tuple(carrier.items()), end
