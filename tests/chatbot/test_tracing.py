"""Traces: from the visitor's message to the reply, over processes; and what leaves the house."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chatbot import tracing
from chatbot.errors import RateLimited
from chatbot.tracing import current_traceparent, request_span, span, trace_id_of

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Where the spans of this test go."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "tracer", provider.get_tracer("test"))
    yield kept
    provider.shutdown()


def _by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_without_a_collector_requests_have_trace_ids() -> None:
    with request_span("request", "") as one:
        assert trace_id_of(current_traceparent()) == one
        assert len(one) == 32
        with span("inner"):
            assert trace_id_of(current_traceparent()) == one
    with request_span("request", "") as two:
        assert two != one
    with request_span("request", CALLER) as given:
        assert given == trace_id_of(CALLER)
    with request_span("request", "nonsense") as made:
        assert made not in ("", one, two)
    assert current_traceparent() == ""


def test_spans_are_children_over_processes(exporter: InMemorySpanExporter) -> None:
    with request_span("socket", CALLER), span("chat.message", conversation__id="c-1"):
        carried = current_traceparent()
    with span("reply", carried, attempt=1):
        pass
    spans = _by_name(exporter)
    message, reply, socket = spans["chat.message"], spans["reply"], spans["socket"]
    assert reply.parent is not None
    assert message.context is not None
    assert reply.parent.span_id == message.context.span_id
    assert message.parent == socket.context
    ids = {f"{s.context.trace_id:032x}" for s in spans.values() if s.context}
    assert ids == {trace_id_of(CALLER)}
    assert dict(message.attributes or {}) == {"conversation.id": "c-1"}


@pytest.mark.parametrize(
    ("error", "code"),
    [(RateLimited("too many: bob@example.com"), "rate_limited"), (KeyError("bob"), "KeyError")],
)
def test_a_failed_span_says_which_error_and_not_its_text(
    exporter: InMemorySpanExporter, error: Exception, code: str
) -> None:
    with pytest.raises(type(error)), span("work"):
        raise error
    (failed,) = exporter.get_finished_spans()
    assert failed.status.description == code
    assert failed.events == ()


def test_spans_arrive_at_the_collector() -> None:
    """Over OTLP/HTTP, from a process of its own, as it ends."""
    bodies: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        program = (
            "from chatbot.settings import Settings\n"
            "from chatbot.tracing import configure_tracing, span\n"
            f"settings = Settings(otel_endpoint='http://127.0.0.1:{server.server_port}/')\n"
            "configure_tracing(settings, 'worker')\n"
            "with span('reply', reply__id='r-1'): pass\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        server.shutdown()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    assert b"frontdesk-worker" in body
    assert b"reply.id" in body
