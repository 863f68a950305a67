"""Traces from socket to token (OpenTelemetry), in W3C Trace Context.

Every request has a trace id, which is in its log lines; it travels with the reply's job, so that a
worker's lines and spans belong to the message that asked for them. Spans are recorded and sent
when ``FRONTDESK_OTEL_ENDPOINT`` is set and ``frontdesk[otel]`` is installed; else they cost next to
nothing. Attributes are ids, counts and codes: never a word that anybody wrote.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    StatusCode,
    Tracer,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chatbot import __version__
from chatbot.errors import FrontdeskError, SettingsError
from chatbot.settings import Settings

Attribute = str | int | float | bool
tracer: Tracer = trace.get_tracer("frontdesk", __version__)
_PROPAGATOR = TraceContextTextMapPropagator()


def configure_tracing(settings: Settings, process: str) -> None:
    """Send the spans of this process to ``otel_endpoint``; nothing when that is empty.

    Raises:
        SettingsError: the packages are missing.
    """
    if not settings.otel_endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "FRONTDESK_OTEL_ENDPOINT needs more packages: pip install 'frontdesk[otel]'"
        ) from None
    resource = Resource.create({"service.name": f"frontdesk-{process}"})
    provider = TracerProvider(resource=resource)
    endpoint = f"{settings.otel_endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)  # ends, and sends what is left, with the process


@contextmanager
def span(name: str, traceparent: str = "", **attributes: Attribute) -> Iterator[Span]:
    """A span while the block runs; a child of ``traceparent``, else of the current one. An
    exception marks it with its code or class, never with its text."""
    parent = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    with tracer.start_as_current_span(
        name, parent, attributes=named, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            code = error.code if isinstance(error, FrontdeskError) else type(error).__name__
            current.set_status(StatusCode.ERROR, code)
            raise


@contextmanager
def request_span(name: str, traceparent: str, **attributes: Attribute) -> Iterator[str]:
    """The span of a request from outside; yields its trace id, 32 hexadecimal digits. It has one
    also when no spans are recorded and the caller gave none."""
    with span(name, traceparent, **attributes) as current:
        context = current.get_span_context()
        if context.is_valid:
            yield trace.format_trace_id(context.trace_id)
            return
        made = SpanContext(secrets.randbits(128) | 1, secrets.randbits(64) | 1, is_remote=False)
        with trace.use_span(NonRecordingSpan(made)):
            yield trace.format_trace_id(made.trace_id)


def rename_span(name: str, status: int) -> None:
    """Give the current span the name that only its end knows, and its HTTP status."""
    current = trace.get_current_span()
    current.update_name(name)
    current.set_attribute("http.response.status_code", status)


def current_traceparent() -> str:
    """The current span as a ``traceparent`` header; empty when there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id_of(traceparent: str) -> str:
    """The trace id in a ``traceparent``; empty when it is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) >= 4 else ""
