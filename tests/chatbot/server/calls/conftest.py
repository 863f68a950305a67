"""A site's key, a call, and what a recogniser sends."""

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from chatbot.record.clock import now_ms
from chatbot.record.tables import Site
from chatbot.server.api_keys import create_key
from tests.chatbot.server.conftest import _plain_logs, anna, ben, server, services
from tests.chatbot.server.room import Frame, Running

__all__ = ["_plain_logs", "anna", "ben", "server", "services"]
NOW = int(time.time() * 1000) - 60_000  # when the calls of these tests began


def said(name: str, speaker: str, text: str, at: int, final: bool = True) -> Frame:
    """A fragment; ``at`` in ms since the call began."""
    return {"id": name, "speaker": speaker, "text": text, "at": NOW + at, "final": final}


class Telephony:
    """A client with a site's key."""

    def __init__(self, http: httpx.AsyncClient, key: str) -> None:
        self.http = http
        self.key = key

    async def begin(self, call_id: str = "pbx 1", **more: Any) -> Frame:
        body = {"site": "demo", "call_id": call_id, "agent": "anna", **more}
        answer = await self.http.post("/sessions", json=body)
        assert answer.status_code in (200, 201), answer.text
        data: Frame = answer.json()
        return data

    async def call(self) -> str:
        return str((await self.begin())["session_id"])

    async def hear(self, call: str, *fragments: Frame) -> list[tuple[str, str]]:
        answer = await self.http.post(
            f"/sessions/{call}/fragments", json={"fragments": list(fragments)}
        )
        assert answer.status_code == 200, answer.text
        return [(result["id"], result["outcome"]) for result in answer.json()["results"]]

    async def read(self, call: str) -> Frame:
        answer = await self.http.get(f"/sessions/{call}")
        assert answer.status_code == 200, answer.text
        data: Frame = answer.json()
        return data


def client_of(server: Running, key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=f"{server.url}/v1/assist", headers=headers)


@pytest.fixture
async def telephony(server: Running) -> AsyncIterator[Telephony]:
    _, key = create_key(server.services.database, "test", "telephony", "demo")
    async with client_of(server, key) as http:
        yield Telephony(http, key)


@pytest.fixture
def shop_key(server: Running) -> str:
    """A key of another site."""
    with server.services.database.session() as session:
        session.add(Site(name="shop", origins=[], created_at=now_ms()))
    return create_key(server.services.database, "test", "shop", "shop")[1]
