"""OpenTelemetry traces, the extra ``otel``: a span for each request, and in it where the time went.

A request that carries a ``traceparent`` becomes part of its caller's trace. The spans of preparing, queueing
and the device are laid end to end before the answer, with the lengths that ``Server-Timing`` gives.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from mimic_engine._version import __version__
from mimic_engine.errors import MissingDependencyError
from mimic_engine.server.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span


class RequestTracer:
    """Makes the spans of requests with a provider, which it owns.

    Raises
    ------
    MissingDependencyError
        If OpenTelemetry is not installed.
    """

    def __init__(self, provider: TracerProvider) -> None:
        api = _import_api()
        self._api, self._provider = api, provider
        self._tracer = provider.get_tracer("mimic_engine", __version__)

    @classmethod
    def open(cls, settings: Settings) -> RequestTracer | None:
        """Export to ``otlp_endpoint``; None where the settings name none."""
        if settings.otlp_endpoint is None:
            return None
        _import_api()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        resource = Resource.create({"service.name": "mimic_engine", "service.version": __version__})
        provider = TracerProvider(
            resource=resource, sampler=ParentBasedTraceIdRatio(settings.otlp_sample_ratio)
        )
        endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider)

    def begin(self, scope: Scope, headers: Headers, request_id: str) -> Span:
        """Begin the span of a request, as part of its caller's trace if it names one."""
        attributes = {"http.request.method": scope["method"], "mimic.request_id": request_id}
        return self._tracer.start_span(
            scope["method"],
            context=self._api.propagator.extract(dict(headers)),
            kind=self._api.trace.SpanKind.SERVER,
            attributes=attributes,
        )

    def end(self, span: Span, route: str, method: str, status: int, parts_ms: dict[str, float]) -> None:
        """End it: name, status, and a span for each part of the work."""
        end_ns = time.time_ns()
        context = self._api.trace.set_span_in_context(span)
        at_ns = end_ns - int(sum(parts_ms.values()) * 1e6)
        for name, ms in parts_ms.items():
            part = self._tracer.start_span(name, context=context, start_time=at_ns)
            at_ns += int(ms * 1e6)
            part.end(at_ns)
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._api.trace.StatusCode.ERROR)
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left, and end the exporting thread."""
        self._provider.shutdown()


class _Api:
    def __init__(self, trace: Any, propagator: Any) -> None:
        self.trace, self.propagator = trace, propagator


def _import_api() -> _Api:
    try:
        import opentelemetry.sdk.trace
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        message = "otlp_endpoint: traces need OpenTelemetry: pip install 'mimic-engine[otel]'"
        raise MissingDependencyError(message) from error
    del opentelemetry
    return _Api(trace, TraceContextTextMapPropagator())
