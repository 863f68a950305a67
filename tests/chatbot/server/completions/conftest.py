"""The real app on a real socket, the real store, a worker with a scripted engine, and the
official client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from chatbot.record.database import Database
from chatbot.server.api_keys import create_key
from tests.chatbot.server.room import Running, running
from tests.chatbot.worker.conftest import Place, make_services
from tests.chatbot.worker.scripted_engine import ScriptedEngine

TEXT = "Your parcel is on its way 🙂, é and 漢字 included."
BASE = "base-smollm2-135m"
HELLO: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]


@dataclass
class Desk:
    """A place with a server in front."""

    place: Place
    server: Running
    client: AsyncOpenAI
    key: str

    @property
    def engine(self) -> ScriptedEngine:
        return self.place.engine

    async def ask(self, **options: Any) -> Any:
        given = {"model": "live", "messages": HELLO, **options}
        return await self.client.chat.completions.create(**given)


@pytest.fixture(autouse=True)
def _quick_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.worker.worker.TAKE_SECONDS", 0.2)
    monkeypatch.setattr("chatbot.worker.completions.TAKE_SECONDS", 0.2)
    monkeypatch.setattr("chatbot.completions.exchange.TICK", 0.1)
    monkeypatch.setattr("chatbot.completions.outbox.HEARTBEAT", 0.1)


@pytest.fixture
def place(redis: Redis, database: Database, tmp_path: Path) -> Place:
    services = make_services(redis, database, tmp_path, lease_seconds=20.0)
    return Place(services, ScriptedEngine(lambda prompt: TEXT), tmp_path / "artifacts")


@asynccontextmanager
async def serving(place: Place) -> AsyncIterator[Desk]:
    """A server and a client of it, no worker."""
    _, key = await asyncio.to_thread(create_key, place.services.database, "test", "a test")
    async with running(place.services) as server:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=30)
        async with client:
            yield Desk(place, server, client, key)


@pytest.fixture
async def desk(place: Place) -> AsyncIterator[Desk]:
    """With a worker."""
    async with serving(place) as found, place.worker(drain_seconds=0.2):
        yield found
