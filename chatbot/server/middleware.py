"""Around every request: an id in the logs and the answer, its duration, and safe headers.

Plain ASGI, so that streamed answers and websockets pass through untouched.
"""

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbot.server.metrics import Metrics

log = structlog.get_logger()
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
# W3C Trace Context, section 3.2: version-traceid-parentid-flags
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


def request_ids(headers: Headers) -> dict[str, str]:
    """``request_id`` and ``trace_id``: the caller's if they are well formed, else new ones."""
    given = headers.get("x-request-id", "")
    trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return {
        "request_id": given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8),
        "trace_id": trace[1] if trace else secrets.token_hex(16),
    }


class RequestContext:
    """Binds the ids to the log of whatever the request does, and adds the headers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        ids = request_ids(Headers(scope=scope))
        with structlog.contextvars.bound_contextvars(**ids):
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._http(scope, receive, send, ids["request_id"])

    async def _http(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - began
            # the template, not the path: a path may hold anything
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.request(scope["method"], route, status, seconds)
            if scope["path"] not in _QUIET:
                log.info(
                    "http.answered",
                    method=scope["method"],
                    route=route,
                    status=status,
                    ms=round(seconds * 1000, 1),
                )
