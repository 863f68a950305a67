"""Prometheus metrics of one server process, in a registry of their own (docs/metrics.md)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from chatbot.protocol import CloseCode

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


OUTCOMES = ("stop", "length", "failed", "cancelled")


class CompletionMetrics:
    """Requests of the OpenAI-compatible API."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "frontdesk_api_requests",
            "Requests for a completion, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._tokens = Counter(
            "frontdesk_api_tokens",
            "Tokens of completions: of prompts, by where they came from, and of replies.",
            ["kind"],
            registry=registry,
        )
        self.first_text = Histogram(
            "frontdesk_api_first_text_seconds",
            "From a request for a completion to its first text.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.open = Gauge(
            "frontdesk_api_open", "Requests for a completion that are open.", registry=registry
        )

    def ended(self, outcome: str) -> None:
        """``outcome`` is one of OUTCOMES."""
        self._requests.labels(outcome).inc()

    def used(self, computed: int, cached: int, completion: int) -> None:
        """Tokens of a completion that came to its end."""
        for kind, count in (("computed", computed), ("cached", cached), ("completion", completion)):
            self._tokens.labels(kind).inc(count)


class Metrics:
    """Counters of this process. Labels come from closed sets only, never from what peers send."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.completions = CompletionMetrics(self.registry)
        self._open = Gauge(
            "frontdesk_sockets_open", "Sockets open now.", ["kind"], registry=self.registry
        )
        self._closed = Counter(
            "frontdesk_sockets_closed",
            "Sockets that the server closed, by close code.",
            ["kind", "code"],
            registry=self.registry,
        )
        self._messages = Counter(
            "frontdesk_messages",
            "Messages appended to conversations.",
            ["role"],
            registry=self.registry,
        )
        self._deltas = Counter(
            "frontdesk_deltas_sent",
            "Pieces of replies sent to sockets.",
            ["kind"],
            registry=self.registry,
        )
        self._errors = Counter(
            "frontdesk_errors",
            "Errors told to clients, by code.",
            ["code"],
            registry=self.registry,
        )
        self._limited = Counter(
            "frontdesk_limited",
            "What was refused or ended because a limit was reached.",
            ["limit"],
            registry=self.registry,
        )
        self.workers = Gauge(
            "frontdesk_workers_alive",
            "Workers that said lately that they are alive.",
            registry=self.registry,
        )
        self.queue = Gauge(
            "frontdesk_queue_jobs",
            "Replies that wait or are being written, of all servers.",
            registry=self.registry,
        )
        self._requests = Histogram(
            "frontdesk_http_request_seconds",
            "Time to answer an HTTP request.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    @contextmanager
    def open_socket(self, kind: str) -> Iterator[None]:
        """Count a socket as open while the block runs."""
        self._open.labels(kind).inc()
        try:
            yield
        finally:
            self._open.labels(kind).dec()

    def socket_closed(self, kind: str, code: CloseCode) -> None:
        self._closed.labels(kind, str(int(code))).inc()

    def message(self, role: str) -> None:
        """``role`` is visitor, agent or note."""
        self._messages.labels(role).inc()

    def frame_sent(self, kind: str, frame: dict[str, Any]) -> None:
        """Count a frame if it is a piece of a reply or an error."""
        if frame["type"] == "reply.delta":
            self._deltas.labels(kind).inc()
        elif frame["type"] == "error":
            self.error(frame["code"])

    def error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def limited(self, limit: str | None) -> None:
        """``limit`` is the name of a setting; None counts nothing."""
        if limit is not None:
            self._limited.labels(limit).inc()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """``route`` is the path's template, so that its values are few."""
        self._requests.labels(method, route, str(status)).observe(seconds)


router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """All metrics in Prometheus text format."""
    registry = request.app.state.room.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
