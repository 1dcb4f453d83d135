"""The spans of one instance of a model. It lies beside `model.py`, and is read only if asked for.

The front door hands over its span as the request's parameter `traceparent`.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

# Of an export, retries included: the end of a process waits for the last one.
_EXPORT_MS, _TIMEOUT_S = 1000, 2


class Tracing:
    """Makes a span of each request that has a parent.

    Args:
        endpoint: Where spans go, by OTLP over HTTP.
        model: The model's name.
        version: Its version.
    """

    def __init__(self, endpoint: str, model: str, version: str) -> None:
        resource = Resource({"service.name": "bilateral"}).merge(Resource.create())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint, timeout=_TIMEOUT_S), schedule_delay_millis=_EXPORT_MS
            )
        )
        self._tracer = self._provider.get_tracer("bilateral_serving.python_backend")
        self._name = f"model {model}"
        self._attributes = {"bilateral.model": model, "bilateral.version": version}

    def ended(
        self, traceparent: str, began_ns: int, ended_ns: int, stages: Mapping[str, float]
    ) -> None:
        """Tell of a request that was answered; times are those of `time.time_ns`."""
        span = self._tracer.start_span(
            self._name,
            context=propagate.extract({"traceparent": traceparent}),
            kind=trace.SpanKind.INTERNAL,
            start_time=began_ns,
            attributes=self._attributes
            | {f"bilateral.{stage}_s": seconds for stage, seconds in stages.items()},
        )
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
