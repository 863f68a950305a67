"""The console's web application: the cookie's route and the guards around Streamlit."""

import time

import httpx
import pytest
import streamlit as st
from starlette.types import Message, Receive, Scope, Send

from ui.server import Guards, begin_session
from ui.vault import COOKIE, TICKET_HEADER, KeptLogin, open_vault


@pytest.fixture(autouse=True)
def _empty_vault() -> None:
    st.cache_resource.clear()


def http(scheme: str = "http") -> httpx.AsyncClient:
    from starlette.applications import Starlette
    from starlette.routing import Route

    app = Starlette(routes=[Route("/console/session", begin_session, methods=["POST"])])
    transport = httpx.ASGITransport(app=Guards(app))
    return httpx.AsyncClient(transport=transport, base_url=f"{scheme}://console")


def ticket() -> str:
    expires = int(time.time() * 1000) + 3_600_000
    return open_vault().keep(KeptLogin("t0ken", "ada", "admin", expires))[1]


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
async def test_a_ticket_becomes_a_cookie_that_scripts_cannot_read(
    scheme: str, secure: bool
) -> None:
    async with http(scheme) as client:
        answer = await client.post("/console/session", headers={TICKET_HEADER: ticket()})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert ("Secure" in cookie) is secure
    assert "t0ken" not in cookie
    key = cookie.split("=", 1)[1].split(";")[0]
    assert open_vault().find(key) is not None


async def test_a_ticket_works_once_and_a_made_up_one_never() -> None:
    used = ticket()
    async with http() as client:
        await client.post("/console/session", headers={TICKET_HEADER: used})
        for again in (used, "made-up", ""):
            answer = await client.post("/console/session", headers={TICKET_HEADER: again})
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers


async def test_pages_may_not_be_framed_elsewhere() -> None:
    async with http() as client:
        answer = await client.post("/console/session")
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [
        (b"http://127.0.0.1:8501", True),
        (None, True),  # no browser
        (b"http://127.0.0.1:8080", False),  # another port is another origin
        (b"http://evil.example", False),
        (b"null", False),
    ],
)
async def test_sockets_come_from_this_very_origin_only(origin: bytes | None, let_in: bool) -> None:
    reached = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    headers = [(b"host", b"127.0.0.1:8501")]
    if origin is not None:
        headers.append((b"origin", origin))
    await Guards(inner)({"type": "websocket", "headers": headers}, receive, send)
    assert bool(reached) is let_in
    assert [message["type"] for message in sent] == ([] if let_in else ["websocket.close"])
