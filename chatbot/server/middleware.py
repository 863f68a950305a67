"""Around every request: an id in the logs and the answer, its duration, and safe headers.

Plain ASGI, so that streamed answers and websockets pass through untouched.
"""

import asyncio
import re
import secrets
import time

import structlog
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbot.server.errors import problem
from chatbot.server.metrics import Metrics
from chatbot.tracing import rename_span, request_span

log = structlog.get_logger()
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


def request_id_of(headers: Headers) -> str:
    """``X-Request-Id`` of the caller if it is well formed, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


PART_SECONDS = 8.0  # within which the next part of a body must come; less than a stop takes
STALLED = f"the body is not complete, and nothing more came for {PART_SECONDS:.0f} seconds"


class BodyLimit:
    """Refuses a request whose body is larger than ``most`` bytes: by what it announces, and, when
    it announces nothing, as soon as more has come. So no body is ever kept that is too large. And
    one whose body stops coming: it would keep its connection, and a server that wants to stop."""

    def __init__(self, app: ASGIApp, most: int, metrics: Metrics) -> None:
        self._app = app
        self._most = most
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._most:
            await self._refuse(scope, receive, send)
            return
        left, ended = self._most, False

        async def receive_within() -> Message:
            nonlocal left, ended
            if ended:
                return await receive()
            try:
                async with asyncio.timeout(PART_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, STALLED) from None
            ended = not message.get("more_body", False)
            left -= len(message.get("body", b""))
            if left < 0:
                self._metrics.limited("max_body_bytes")
                # FastAPI lets only this class through while it reads a body
                raise HTTPException(413, self._problem())
            return message

        await self._app(scope, receive_within, send)

    def _problem(self) -> str:
        return f"the body is too large: at most {self._most} bytes are taken"

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.limited("max_body_bytes")
        body = problem(scope["path"], "too_large", self._problem())
        await JSONResponse(body, 413, {"Connection": "close"})(scope, receive, send)


class RequestContext:
    """Binds the ids to the log of whatever the request does, and adds the headers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_of(headers)
        # the path's template is not known yet, and a path may hold anything
        name = f"{scope.get('method', 'WEBSOCKET')} request"
        with (
            request_span(name, headers.get("traceparent", "")) as trace_id,
            structlog.contextvars.bound_contextvars(request_id=request_id, trace_id=trace_id),
        ):
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._http(scope, receive, send, request_id)

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
            rename_span(f"{scope['method']} {route}", status)
            self._metrics.request(scope["method"], route, status, seconds)
            if scope["path"] not in _QUIET:
                log.info(
                    "http.answered",
                    method=scope["method"],
                    route=route,
                    status=status,
                    ms=round(seconds * 1000, 1),
                )
