"""Traces: one span a request, parts inside it, part of the caller's trace, sent to a collector."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mimic_engine.errors import MissingDependencyError
from mimic_engine.server.settings import Settings
from mimic_engine.server.tracing import RequestTracer

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def traced(serve, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return serve(tracer=RequestTracer(provider))


def test_a_request_is_a_span_with_its_parts_inside(traced, spans):
    response = traced.post("/v1/link", json=JORDAN, headers={"x-request-id": "abc-1"})
    *parts, request = spans.get_finished_spans()
    assert [part.name for part in parts] == ["prepare", "queue", "device"]
    assert request.name == "POST /v1/link"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/link",
        "http.response.status_code": 200,
        "mimic.request_id": "abc-1",
    }
    assert request.parent is None
    for part, after in zip(parts, [*parts[1:], request], strict=True):
        assert part.parent.span_id == request.context.span_id
        assert part.start_time <= part.end_time <= after.end_time
    timing = response.headers["server-timing"]
    for part in parts:
        assert f"{part.name};dur={(part.end_time - part.start_time) / 1e6:.2f}"[:-1] in timing


def test_it_belongs_to_the_trace_of_its_caller(traced, spans):
    traced.get("/v1/info", headers={"traceparent": PARENT})
    [span] = spans.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


def test_faults_are_marked_and_refusals_are_not(traced, spans, linker):
    traced.post("/v1/link", json={})
    linker.fail_device = KeyError("x")
    traced.post("/v1/link", json=JORDAN)
    traced.get("/nowhere")
    requests = [s for s in spans.get_finished_spans() if "http.route" in s.attributes]
    found = [(s.attributes["http.response.status_code"], s.status.is_ok) for s in requests]
    assert found == [(422, True), (500, False), (404, True)]
    assert requests[2].name == "GET unmatched"


def test_without_an_endpoint_there_are_none():
    assert RequestTracer.open(Settings()) is None


def test_without_opentelemetry_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingDependencyError, match=r"mimic-engine\[otel\]"):
        RequestTracer.open(Settings(otlp_endpoint="http://127.0.0.1:1"))


class Collector(BaseHTTPRequestHandler):
    received: ClassVar[list] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


def test_spans_reach_a_collector(serve, linker):
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        tracer = RequestTracer.open(Settings(otlp_endpoint=f"http://127.0.0.1:{collector.server_port}/"))
        client = serve(tracer=tracer)
        client.post("/v1/link", json=JORDAN)
        tracer.close()
        collector.shutdown()
    [(path, body), *_] = Collector.received
    assert path == "/v1/traces"
    assert b"POST /v1/link" in body
    assert b"mimic_engine" in body
