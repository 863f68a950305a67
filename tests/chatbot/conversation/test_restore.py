"""The store loses everything, or its last writes, or nothing but its process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Never

import pytest
from redis.asyncio import Redis

from chatbot.conversation import keys
from chatbot.conversation.archive import Archive, Archiver
from chatbot.conversation.events import ConversationId
from chatbot.conversation.log import RedisLog
from chatbot.errors import NotFound, StoreUnavailable
from chatbot.record.database import Database
from tests.chatbot.conversation.conftest import ATTEMPTS, LEASE
from tests.chatbot.conversation.own_store import OwnStore
from tests.chatbot.conversation.steps import (
    VISITOR,
    answer,
    ask,
    begin,
    complete,
    events_of,
    live_of,
    no_job,
    shape,
    streaming,
    take,
    until,
)


@pytest.fixture
def store(tmp_path: Path) -> AsyncIterator[OwnStore]:
    own = OwnStore(tmp_path)
    own.start()
    yield own
    own.kill()


@pytest.fixture
async def own_redis(store: OwnStore) -> AsyncIterator[Redis]:
    client = Redis.from_url(store.url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def own_log(own_redis: Redis, archive: Archive) -> RedisLog:
    return RedisLog(own_redis, archive, LEASE, ATTEMPTS)


# -- everything is lost


async def test_after_a_flush_the_record_is_the_log(
    redis: Redis, recorded_log: RedisLog, archive: Archive
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid, "one \x00 é 🙂")
    await answer(log, "two")
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    await log.append_note(cid, text="three", author="anna", client_message_id="n1")
    before = await log.catch_up(cid, None, None)
    assert await Archiver(log, archive).copy_once() == 1
    await redis.flushdb()
    after = await log.catch_up(cid, before.head.epoch, before.head.offset)
    assert not after.recovered
    assert after.head.epoch > before.head.epoch
    assert after.events == before.events
    assert (after.head.status, after.head.agent) == ("human", "anna")
    assert after.head.offset == before.head.offset
    accepted = await log.append_message(
        cid, role="agent", text="four", client_message_id="a1", author="anna"
    )
    assert accepted.offset == before.head.offset + 1
    again = await log.append_note(cid, text="three", author="anna", client_message_id="n1")
    assert again.duplicate  # ids came back too


@pytest.mark.parametrize("entry", ["head", "append", "stop", "status", "create"])
async def test_every_way_in_restores(
    redis: Redis, recorded_log: RedisLog, archive: Archive, entry: str
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    await answer(log)
    await Archiver(log, archive).copy_once()
    await redis.flushdb()
    if entry == "head":
        head = await log.head(cid)
        assert head is not None
        assert head.offset == 2
    elif entry == "append":
        assert await ask(log, cid) == 3
    elif entry == "stop":
        assert not await log.stop_reply(cid, "r")  # type: ignore[arg-type]
    elif entry == "status":
        assert (await log.change_status(cid, "waiting", reason="a", actor="b")).offset == 3
    else:
        assert (await log.create(cid, site="x", visitor=VISITOR)).offset == 2
    assert [event.offset for event in (await events_of(log, cid))[:2]] == [1, 2]


async def test_what_was_not_recorded_is_gone_and_says_so(
    redis: Redis, recorded_log: RedisLog, archive: Archive
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid, "recorded")
    await Archiver(log, archive).copy_once()
    await ask(log, cid, "lost")
    ghost = await begin(log, "ghost")
    await redis.flushdb()
    assert await shape(log, cid) == ["visitor: recorded"]
    assert await log.head(ghost) is None


async def test_an_unanswered_question_is_asked_again_after_a_flush(
    redis: Redis, recorded_log: RedisLog, archive: Archive
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log)
    await Archiver(log, archive).copy_once()
    await redis.flushdb()
    assert await log.append_delta(lease, 6, "x") == "lost"
    await no_job(log)  # the groups were flushed too, and nobody looked at the conversation yet
    await log.head(cid)
    following = await take(log)
    assert following.reply_id != lease.reply_id
    await log.start_reply(following, "v-1")
    assert await complete(log, lease, "So far") == "lost"
    assert await complete(log, following, "") == "written"


async def test_a_waiting_worker_survives_a_flush(redis: Redis, recorded_log: RedisLog) -> None:
    await no_job(recorded_log)
    waiting = asyncio.create_task(recorded_log.take_job("w", 5.0))
    await asyncio.sleep(0.05)
    await redis.flushdb()
    await begin(recorded_log)
    await ask(recorded_log, ConversationId("c1"))
    assert await waiting is not None


async def test_many_restore_one(redis: Redis, archive: Archive) -> None:
    logs = [RedisLog(redis, archive, LEASE, ATTEMPTS) for _ in range(4)]
    cid = await begin(logs[0])
    await ask(logs[0], cid)
    await Archiver(logs[0], archive).copy_once()
    await redis.flushdb()
    heads = await asyncio.gather(*(log.head(cid) for log in logs))
    assert len({head.epoch for head in heads if head is not None}) == 1
    await take(logs[0])
    await no_job(logs[1])  # one reply, not four


async def test_the_desk_list_comes_back(
    redis: Redis, recorded_log: RedisLog, archive: Archive
) -> None:
    log = recorded_log
    for number in range(3):
        cid = await begin(log, f"c{number}")
        await ask(log, cid)
        await log.change_status(cid, "waiting", reason="asked", actor="visitor")
    await log.change_status(cid, "closed", reason="done", actor="anna")
    archiver = Archiver(log, archive)
    assert await log.restore_open() == 0  # nothing was lost yet
    await archiver.copy_once()
    await redis.flushdb()
    assert await log.open_conversations() == []
    assert await log.restore_open() == 2
    assert await log.restore_open() == 0
    statuses = {head.conversation_id: head.status for head in await log.open_conversations()}
    assert statuses == {"c0": "waiting", "c1": "waiting"}


async def test_a_closed_conversation_is_restored_for_a_while_only(
    redis: Redis, recorded_log: RedisLog, archive: Archive
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    await log.change_status(cid, "closed", reason="done", actor="anna")
    await Archiver(log, archive).copy_once()
    await redis.flushdb()
    await log.head(cid)
    assert await redis.ttl(keys.keys_of(cid).log) > 0
    await ask(log, cid, "again")
    assert await redis.ttl(keys.keys_of(cid).log) == -1


async def test_with_the_database_away_nothing_is_made_up(
    redis: Redis, recorded_log: RedisLog, archive: Archive, database: Database
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    await Archiver(log, archive).copy_once()
    await redis.flushdb()
    away = RedisLog(redis, _AwayArchive(database), LEASE, ATTEMPTS)
    with pytest.raises(StoreUnavailable):
        await away.head(cid)
    with pytest.raises(StoreUnavailable):
        await ask(away, cid)
    fresh = await begin(away, "fresh")  # new chats go on
    assert await ask(away, fresh) == 1


async def test_without_a_record_what_is_gone_is_not_found(
    redis: Redis, redis_log: RedisLog
) -> None:
    cid = await begin(redis_log)
    await ask(redis_log, cid)
    await redis.flushdb()
    with pytest.raises(NotFound):
        await ask(redis_log, cid)


class _AwayArchive(Archive):
    def recorded(self, conversation_id: ConversationId) -> int | None:
        raise StoreUnavailable("the database cannot be used: away")

    def load(self, conversation_id: ConversationId) -> Never:  # type: ignore[no-untyped-def]
        raise StoreUnavailable("the database cannot be used: away")


# -- the store is killed and comes back


async def test_a_kill_loses_nothing_that_was_acknowledged(
    store: OwnStore, own_log: RedisLog
) -> None:
    cid = await begin(own_log)
    await ask(own_log, cid)
    lease = await streaming(own_log, "Half ")
    before = await own_log.catch_up(cid, None, None)
    await asyncio.to_thread(store.restart)
    assert await own_log.append_delta(lease, 5, "done") == "written"
    live = await live_of(own_log, cid)
    assert live is not None
    assert live.text == "Half done"
    after = await own_log.catch_up(cid, before.head.epoch, before.head.offset)
    assert after.recovered  # the reader keeps its place, under the new epoch
    assert after.head.epoch > before.head.epoch
    assert await complete(own_log, lease, "Half done") == "written"
    assert await shape(own_log, cid) == ["visitor: hello", "bot (end): Half done"]


async def test_a_reader_with_lost_events_reloads(
    store: OwnStore, own_redis: Redis, own_log: RedisLog
) -> None:
    cid = await begin(own_log)
    await ask(own_log, cid, "kept")
    await asyncio.to_thread(store.remember)
    await ask(own_log, cid, "lost")
    head = await own_log.head(cid)
    assert head is not None
    await asyncio.to_thread(store.restart_from_memory)
    await ask(own_log, cid, "new")  # takes the offset of the lost one
    lost = await own_log.catch_up(cid, head.epoch, 2)
    assert not lost.recovered
    assert [event.data["text"] for event in lost.events] == ["kept", "new"]
    kept = await own_log.catch_up(cid, head.epoch, 1)
    assert kept.recovered
    assert [event.data["text"] for event in kept.events] == ["new"]


async def test_events_lost_by_the_store_come_back_from_the_record(
    store: OwnStore, own_redis: Redis, own_log: RedisLog, archive: Archive
) -> None:
    cid = await begin(own_log)
    await ask(own_log, cid, "one")
    await asyncio.to_thread(store.remember)
    await answer(own_log, "two")
    await ask(own_log, cid, "three")
    before = await own_log.catch_up(cid, None, None)
    await Archiver(own_log, archive).copy_once()
    await asyncio.to_thread(store.restart_from_memory)
    after = await own_log.catch_up(cid, before.head.epoch, 3)
    assert not after.recovered
    assert after.events == before.events
    assert await ask(own_log, cid, "four") == 4
    lease = await take(own_log)
    assert lease.upto == 4
    await no_job(own_log)  # the job of the lost past is gone


async def test_text_lost_by_the_store_is_told_to_the_worker(
    store: OwnStore, own_redis: Redis, own_log: RedisLog
) -> None:
    cid = await begin(own_log)
    await ask(own_log, cid)
    lease = await streaming(own_log, "Half ")
    await asyncio.to_thread(store.remember)
    await own_log.append_delta(lease, 5, "lost ")
    await asyncio.to_thread(store.restart_from_memory)
    with pytest.raises(Exception, match="has 5 characters") as caught:
        await own_log.append_delta(lease, 10, "end")
    assert caught.value.data["length"] == 5  # type: ignore[attr-defined]
    assert await own_log.append_delta(lease, 5, "lost end") == "written"


async def test_a_subscription_tells_that_it_was_away(store: OwnStore, own_log: RedisLog) -> None:
    cid = await begin(own_log)
    changes = own_log.changes()
    assert await anext(changes) is None
    await asyncio.to_thread(store.restart)
    assert await asyncio.wait_for(anext(changes), 10) is None
    await ask(own_log, cid)
    assert await asyncio.wait_for(anext(changes), 10) == cid
    await changes.aclose()  # type: ignore[attr-defined]


async def test_while_the_store_is_away_calls_say_so(store: OwnStore, own_log: RedisLog) -> None:
    cid = await begin(own_log)
    await asyncio.to_thread(store.kill)
    with pytest.raises(StoreUnavailable):
        await ask(own_log, cid)
    with pytest.raises(StoreUnavailable):
        await own_log.take_job("w", 0.1)
    with pytest.raises(StoreUnavailable):
        await own_log.open_conversations()
    await asyncio.to_thread(store.start)

    async def works() -> bool:
        try:
            return await ask(own_log, cid) > 0
        except StoreUnavailable:
            return False

    await until(works)
