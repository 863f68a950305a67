"""The console as a web application: Streamlit, the login cookie's route and a few guards."""

import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.starlette import App

from ui.show import ACCENT
from ui.vault import COOKIE, TICKET_HEADER, open_vault

SCRIPT = Path(__file__).with_name("app.py")

# Colours and widths of the console, for browsers that ask for light and for dark; Streamlit looks
# for a config.toml in the current directory only, so they are given here.
THEME: dict[str, Any] = {
    "theme.primaryColor": ACCENT,
    "theme.baseRadius": "0.5rem",
    "theme.showWidgetBorder": True,
    "theme.light.backgroundColor": "#ffffff",
    "theme.light.secondaryBackgroundColor": "#f4f6f5",
    "theme.light.textColor": "#1c2927",
    "theme.light.borderColor": "#d9e0de",
    "theme.light.sidebar.backgroundColor": "#eef3f1",
    "theme.light.sidebar.secondaryBackgroundColor": "#ffffff",
    "theme.dark.backgroundColor": "#101716",
    "theme.dark.secondaryBackgroundColor": "#1b2523",
    "theme.dark.textColor": "#e6eeec",
    "theme.dark.borderColor": "#34423f",
    "theme.dark.sidebar.backgroundColor": "#172120",
    "theme.dark.sidebar.secondaryBackgroundColor": "#212d2b",
}
OPTIONS: dict[str, Any] = {
    **THEME,
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.runOnSave": False,
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",  # a traceback is for the log, not for the browser
}


async def begin_session(request: Request) -> Response:
    """Exchange a ticket, which works once and for a minute, for the login's cookie.

    The ticket comes in a header of its own: another origin cannot send one without a CORS
    preflight, and none is answered here.
    """
    redeemed = open_vault().redeem(request.headers.get(TICKET_HEADER, ""))
    if redeemed is None:
        return Response(status_code=403)
    key, expires_at = redeemed
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    response.set_cookie(
        COOKIE,
        key,
        max_age=max(1, int(expires_at / 1000 - time.time())),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


class Guards:
    """ASGI middleware: sockets only from pages of this very origin (Streamlit lets every port
    of localhost in), and no page of the console inside somebody else's frame."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not _same_origin(Headers(scope=scope)):
            await send({"type": "websocket.close", "code": 1008, "reason": "other origin"})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Frame-Options"] = "SAMEORIGIN"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _same_origin(headers: Headers) -> bool:
    """RFC 6455 section 10.2. A client without an Origin is no browser and carries no cookie of
    a victim."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host", "")


def build_app() -> App:
    """The ASGI application of the console."""
    return App(
        SCRIPT,
        routes=[Route("/console/session", begin_session, methods=["POST"])],
        middleware=[Middleware(Guards)],
    )


def serve(address: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    build_app().run(config={**OPTIONS, "server.address": address, "server.port": port})
