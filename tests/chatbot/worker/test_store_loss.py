"""The store goes away, or forgets, while a reply is being written."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from chatbot.conversation.keys import keys_of
from chatbot.errors import StoreUnavailable
from chatbot.record.database import Database
from tests.chatbot.conversation.own_store import OwnStore
from tests.chatbot.conversation.steps import ask, begin, live_of, until
from tests.chatbot.worker.conftest import LONG, Place, make_services
from tests.chatbot.worker.scripted_engine import ScriptedEngine
from tests.chatbot.worker.test_worker import ended, held


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[OwnStore]:
    store = OwnStore(tmp_path)
    await asyncio.to_thread(store.start)
    yield store
    await asyncio.to_thread(store.kill)


@pytest.fixture
async def own_place(own: OwnStore, database: Database, tmp_path: Path) -> AsyncIterator[Place]:
    client = Redis.from_url(own.url, decode_responses=True)
    services = make_services(client, database, tmp_path, lease_seconds=2.0)
    yield Place(services, ScriptedEngine(lambda prompt: LONG), tmp_path / "artifacts")
    await client.aclose()


async def test_the_store_is_away_in_the_middle_of_a_reply(own: OwnStore, own_place: Place) -> None:
    place = own_place
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await held(place, cid, 30)
        await asyncio.to_thread(own.kill)
        place.engine.go.set()  # the model writes on meanwhile

        async def written() -> bool:
            return place.engine.running == 0

        await until(written)
        with pytest.raises(StoreUnavailable):
            await live_of(place.log, cid)
        await asyncio.to_thread(own.start)
        (reply,) = await ended(place, cid)
    assert (reply.data["text"], reply.data["finish_reason"]) == (LONG, "end")
    assert len(place.engine.requests) == 1  # nothing was written twice by the model


async def test_an_announcement_that_the_store_forgot_is_made_again(place: Place) -> None:
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await held(place, cid, 30)
        names = keys_of(cid)
        await place.services.redis.hset(names.head, mapping={"version": "", "chars": "0"})
        await place.services.redis.delete(names.live)
        place.engine.go.set()
        (reply,) = await ended(place, cid)
    assert (reply.data["text"], reply.data["finish_reason"]) == (LONG, "end")


async def test_text_that_the_store_forgot_is_sent_again(own: OwnStore, own_place: Place) -> None:
    place = own_place
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await held(place, cid, 30)
        await asyncio.to_thread(own.remember)
        place.engine.go.clear()
        lease_text = (await live_of(place.log, cid)).text  # type: ignore[union-attr]
        place.engine.hold_at = 60
        place.engine.go.set()
        place.engine.go.clear()
        await held(place, cid, 60)
        await asyncio.to_thread(own.restart_from_memory)
        live = await live_of(place.log, cid)
        assert live is not None
        assert live.text == lease_text
        place.engine.go.set()
        (reply,) = await ended(place, cid)
    assert reply.data["text"] == LONG
    assert len(place.engine.requests) == 1
