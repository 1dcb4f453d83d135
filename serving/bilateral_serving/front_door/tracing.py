"""The front door's spans: a child of the caller's, the parent of the model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bilateral_serving.front_door.call_record import FINE, CallRecord

# Of an export, retries included: the end of a process waits for the last one.
_EXPORT_MS, _TIMEOUT_S = 1000, 2


class Tracing:
    """Makes a span of each call and sends it by OTLP over HTTP.

    The parent comes from the caller's `traceparent`; what Triton gets is that of this span. Which
    calls are sampled, and what the service is called, say the variables of OpenTelemetry
    (`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`).

    Args:
        endpoint: Where spans go, such as "http://localhost:4318/v1/traces".
    """

    def __init__(self, endpoint: str) -> None:
        resource = Resource({"service.name": "bilateral"}).merge(Resource.create())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint, timeout=_TIMEOUT_S), schedule_delay_millis=_EXPORT_MS
            )
        )
        self._tracer = self._provider.get_tracer("bilateral_serving.front_door")

    def begin(self, record: CallRecord, metadata: Mapping[str, str]) -> Callable[[], None]:
        """Start the span of a call; what is returned ends it."""
        parent = propagate.extract({key: str(value) for key, value in metadata.items()})
        span = self._tracer.start_span(
            record.method.lstrip("/"), context=parent, kind=trace.SpanKind.SERVER
        )
        propagate.inject(record.passed_on, trace.set_span_in_context(span))
        if span.get_span_context().is_valid:
            record.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

        def end() -> None:
            span.set_attributes(
                {
                    "rpc.system": record.protocol,
                    "client.address": record.peer,
                    "bilateral.request_id": record.id,
                    "bilateral.model": record.model,
                    "bilateral.version": record.version,
                    "bilateral.status": record.status,
                }
            )
            if record.status not in FINE:
                span.set_status(trace.StatusCode.ERROR, record.status)
            span.end()

        return end

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
