"""The record's copy: exactly once, whatever crashes; searched; read back."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from sqlalchemy import func, select, text

from chatbot.conversation.archive import Archive, Archiver, ConversationFilter
from chatbot.conversation.events import ConversationId, Event, Head, VisitorId
from chatbot.conversation.log import RedisLog
from chatbot.errors import InputError, StoreUnavailable
from chatbot.record.database import Database
from chatbot.record.tables import EventRow, Review
from tests.chatbot.conversation.conftest import ATTEMPTS, LEASE
from tests.chatbot.conversation.steps import answer, ask, begin, shape, streaming, until

T0 = 1_700_000_000_000


def head(name: str = "c1", offset: int = 2, epoch: str = "000001-a", **changes: Any) -> Head:
    made = Head(
        ConversationId(name), epoch, offset, "bot", "demo", VisitorId("v1"), "", "chat", "", T0,
        T0 + offset,
    )  # fmt: skip
    return replace(made, **changes)


def said(offset: int, text: str, role: str = "visitor") -> Event:
    return Event(offset, "message.created", T0 + offset, {"role": role, "text": text})


def bot(offset: int, text: str, version: str = "v-1") -> Event:
    data = {"text": text, "version": version, "finish_reason": "end", "upto": offset - 1}
    return Event(offset, "reply.completed", T0 + offset, data)


def rows(database: Database) -> int:
    with database.session() as session:
        return int(session.execute(select(func.count()).select_from(EventRow)).scalar_one())


def texts(archive: Archive, name: str = "c1") -> list[str]:
    found = archive.load(ConversationId(name))
    assert found is not None
    assert [event.offset for event in found[1]] == list(range(1, len(found[1]) + 1))
    return [event.data["text"] for event in found[1]]


def test_storing_again_changes_nothing(archive: Archive, database: Database) -> None:
    events = [said(1, "hello"), bot(2, "hi")]
    for _ in range(3):
        archive.store(head(), events)
    archive.store(head(offset=3), [bot(2, "hi"), said(3, "more")])
    assert rows(database) == 3
    assert texts(archive) == ["hello", "hi", "more"]
    assert archive.recorded(ConversationId("c1")) == 3
    assert archive.recorded(ConversationId("c2")) is None
    assert archive.load(ConversationId("c2")) is None


def test_a_conversation_that_is_not_recorded_waits_for_no_writer(
    archive: Archive, database: Database
) -> None:
    """Every new chat asks for one: it must not begin only when a long write has ended."""
    archive.load(ConversationId("warm"))  # the connection is there
    with ThreadPoolExecutor() as pool, database.exclusive_session("somebody who writes long"):
        assert pool.submit(archive.load, ConversationId("new")).result(timeout=10) is None


def test_what_is_stored_comes_back_as_it_was(archive: Archive) -> None:
    data = {
        "text": "nul \x00 \u2028 🙂 \\u0000 / \" '",
        "role": "visitor",
        "usage": {"prompt_tokens": 9007199254740993, "empty": {}, "list": []},
        "confidence": 0.12345678901234566,
        "none": None,
    }
    archive.store(head(offset=1), [Event(1, "message.created", T0, data)])
    found = archive.load(ConversationId("c1"))
    assert found is not None
    row, events = found
    assert events == [Event(1, "message.created", T0, data)]
    assert row.preview == "nul \ufffd \u2028 🙂 \\u0000 / \" '"


def test_the_row_sums_the_conversation_up(archive: Archive) -> None:
    archive.store(
        head(offset=6, status="closed"),
        [
            said(1, "x" * 300),
            bot(2, "hi"),
            Event(3, "note.created", T0, {"text": "a note", "author": "anna"}),
            Event(4, "rating.given", T0, {"score": 2, "comment": "meh"}),
            said(5, "agent here", role="agent"),
            Event(6, "rating.given", T0, {"score": 5, "comment": "better"}),
        ],
    )
    found = archive.load(ConversationId("c1"))
    assert found is not None
    row = found[0]
    assert (row.messages, row.score, row.status) == (3, 5, "closed")
    assert (row.preview, row.started_at, row.updated_at) == ("x" * 200, T0, T0 + 6)


def test_a_younger_epoch_hides_what_came_late_from_an_older_one(
    archive: Archive, database: Database
) -> None:
    """The log was flushed with 3 recorded and restored; a copy of the old 4 and 5 was under way."""
    old, new = "000001-a", "000002-b"
    archive.store(head(offset=3, epoch=old), [said(1, "one"), bot(2, "two"), said(3, "three")])
    archive.store(head(offset=4, epoch=new), [said(4, "new four")])
    archive.store(head(offset=5, epoch=old, status="closed"), [said(4, "old 4"), said(5, "old 5")])
    assert texts(archive) == ["one", "two", "three", "new four"]
    assert archive.recorded(ConversationId("c1")) == 4
    found = archive.load(ConversationId("c1"))
    assert found is not None
    assert (found[0].epoch, found[0].status) == (new, "bot")
    assert rows(database) == 6  # nothing that was acknowledged is thrown away


def test_a_younger_epoch_that_begins_at_one_replaces_all(archive: Archive) -> None:
    archive.store(head(offset=2, epoch="000001-a"), [said(1, "a"), said(2, "b")])
    archive.store(head(offset=1, epoch="000002-b"), [said(1, "only")])
    archive.store(head(offset=1, epoch="000010-c"), [said(1, "youngest")])
    assert texts(archive) == ["youngest"]


# -- search


@pytest.fixture
def filled(archive: Archive, database: Database) -> Archive:
    for number in range(7):
        archive.store(
            head(
                f"c{number}",
                site="shop" if number % 2 else "demo",
                status="waiting" if number == 3 else "bot",
                updated_at=T0 + number // 2,  # equal times: pages must not lose any
            ),
            [said(1, f"question {number} 100%_sure"), bot(2, "Antwort", version=f"v-{number % 3}")],
        )
    archive.store(
        head("c5", offset=3, site="shop", updated_at=T0 + 2),
        [Event(3, "rating.given", T0, {"score": 1, "comment": "Terrible"})],
    )
    with database.session() as session:
        session.add(
            Review(conversation_id="c2", offset=2, verdict="bad", correction="x", comment="",
                   reviewer="ada", updated_at=T0)
        )  # fmt: skip
    return archive


def names(archive: Archive, **wanted: Any) -> list[str]:
    return [item.conversation.id for item in archive.search(ConversationFilter(**wanted)).items]


def test_the_newest_come_first(filled: Archive) -> None:
    assert names(filled) == ["c6", "c5", "c4", "c3", "c2", "c1", "c0"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"status": "waiting"}, ["c3"]),
        ({"site": "shop"}, ["c5", "c3", "c1"]),
        ({"q": "QUESTION 4"}, ["c4"]),
        ({"q": "terrible"}, ["c5"]),
        ({"q": "0%_s"}, ["c6", "c5", "c4", "c3", "c2", "c1", "c0"]),
        ({"q": "0%s"}, []),  # % and _ are characters, not patterns
        ({"q": "question_4"}, []),
        ({"q": "nul \x00"}, []),
        ({"version": "v-2"}, ["c5", "c2"]),
        ({"version": "v"}, []),
        ({"rating": 1}, ["c5"]),
        ({"rating": 5}, []),
        ({"reviewed": True}, ["c2"]),
        ({"reviewed": False, "site": "demo"}, ["c6", "c4", "c0"]),
        ({"site": "shop", "version": "v-0", "q": "antwort"}, ["c3"]),
    ],
)
def test_filters(filled: Archive, wanted: dict[str, Any], expected: list[str]) -> None:
    assert names(filled, **wanted) == expected


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_neither_lose_nor_repeat(filled: Archive, limit: int) -> None:
    seen: list[str] = []
    cursor = ""
    for _ in range(10):
        page = filled.search(ConversationFilter(limit=limit, cursor=cursor))
        seen += [item.conversation.id for item in page.items]
        cursor = page.next_cursor
        if not cursor:
            break
    assert seen == ["c6", "c5", "c4", "c3", "c2", "c1", "c0"]


def test_a_page_says_who_wrote_and_what_was_reviewed(filled: Archive) -> None:
    found = {item.conversation.id: item for item in filled.search(ConversationFilter()).items}
    assert found["c2"].reviewed
    assert not found["c1"].reviewed
    assert found["c1"].versions == ["v-1"]


@pytest.mark.parametrize("wanted", [{"limit": 0}, {"limit": 501}, {"cursor": "x"}, {"cursor": "1"}])
def test_bad_pages_are_refused(archive: Archive, wanted: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        archive.search(ConversationFilter(**wanted))


# -- the archiver


async def test_the_archiver_copies_what_comes(recorded_log: RedisLog, archive: Archive) -> None:
    log = recorded_log
    stop = asyncio.Event()
    archiver = asyncio.create_task(Archiver(log, archive).run(stop))
    cid = await begin(log)
    await ask(log, cid)
    await answer(log)

    async def recorded() -> bool:
        return await asyncio.to_thread(archive.recorded, cid) == 2

    await until(recorded)
    await ask(log, cid, "last words")
    stop.set()
    await archiver
    assert archive.recorded(cid) == 3  # what is there at a stop is still copied
    assert await log.unrecorded() == []


class _Crash(Exception):
    pass


async def test_a_crash_between_copy_and_mark_doubles_nothing(
    recorded_log: RedisLog, archive: Archive, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    await answer(log)

    async def crash(*_: Any) -> None:
        raise _Crash

    with monkeypatch.context() as patch:
        patch.setattr(log, "mark_recorded", crash)
        with pytest.raises(_Crash):
            await Archiver(log, archive).copy_once()
    assert await log.unrecorded() == [(cid, 2)]
    await ask(log, cid, "more")
    await Archiver(log, archive).copy_once()
    assert rows(database) == 3
    assert texts(archive) == ["hello", "Hi there", "more"]
    assert await log.unrecorded() == []


async def test_two_archivers_at_once(redis: Redis, archive: Archive, database: Database) -> None:
    logs = [RedisLog(redis, archive, LEASE, ATTEMPTS) for _ in range(2)]
    for number in range(10):
        cid = await begin(logs[0], f"c{number}")
        await ask(logs[0], cid)
        await ask(logs[0], cid)
    await asyncio.gather(*(Archiver(log, archive).copy_once() for log in logs))
    assert rows(database) == 20
    assert await logs[0].unrecorded() == []


async def test_events_that_come_during_the_copy_stay_to_be_copied(
    recorded_log: RedisLog, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    mark = log.mark_recorded

    async def late(*args: Any) -> None:
        await ask(log, cid, "just now")
        await mark(*args)

    with monkeypatch.context() as patch:
        patch.setattr(log, "mark_recorded", late)
        await Archiver(log, archive).copy_once()
    assert await log.unrecorded() == [(cid, 2)]
    await Archiver(log, archive).copy_once()
    assert texts(archive) == ["hello", "just now"]


async def test_with_the_database_away_it_waits_and_says_how_far_behind_it_is(
    recorded_log: RedisLog, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.conversation.archive.BACKOFF", (0.02, 0.05))
    log = recorded_log
    tries = 0
    store = archive.store

    def away(*args: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise StoreUnavailable("the database cannot be used: away")
        return store(*args)

    monkeypatch.setattr(archive, "store", away)
    registry = CollectorRegistry()
    stop = asyncio.Event()
    cid = await begin(log)
    await ask(log, cid)
    await ask(log, cid)
    archiver = asyncio.create_task(Archiver(log, archive, registry).run(stop))

    def lag() -> float | None:
        return registry.get_sample_value("frontdesk_archive_lag_events")

    async def behind() -> bool:
        return tries >= 1 and lag() == 2

    async def caught_up() -> bool:
        return await log.unrecorded() == [] and lag() == 0

    await until(behind)
    await until(caught_up)
    stop.set()
    await archiver
    assert texts(archive) == ["hello", "hello"]


async def test_one_conversation_that_the_database_refuses_does_not_stop_the_others(
    recorded_log: RedisLog, archive: Archive, database: Database
) -> None:
    log = recorded_log
    bad = await begin(log, "bad")
    await ask(log, bad)
    good = await begin(log, "good")
    await ask(log, good)

    class Picky(Archive):
        def store(self, head: Head, events: Any) -> bool:
            if head.conversation_id == "bad":
                with database.session() as session:
                    session.execute(text("INSERT INTO conversations (id) VALUES ('x')"))
            return super().store(head, events)

    assert await Archiver(log, Picky(database)).copy_once() == 1
    assert archive.recorded(good) == 1
    assert await log.unrecorded() == [(bad, 1)]


async def test_a_copy_of_a_lost_log_does_not_hide_the_new_one(
    redis: Redis, recorded_log: RedisLog, archive: Archive
) -> None:
    """The archiver has read the events, then the store is flushed and the visitor writes on."""
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid, "one")
    await Archiver(log, archive).copy_once()
    await ask(log, cid, "old two")
    old = await log.catch_up(cid, None, None)
    await redis.flushdb()
    await ask(log, cid, "new two")
    archive.store(old.head, old.events[1:])  # late
    await log.mark_recorded(cid, 2, old.head.epoch)
    assert await log.unrecorded() == [(cid, 2)]  # a mark of another epoch does not count
    await Archiver(log, archive).copy_once()
    assert texts(archive) == ["one", "new two"]
    assert await shape(log, cid) == ["visitor: one", "visitor: new two"]


async def test_a_running_reply_is_recorded_when_it_ends(
    recorded_log: RedisLog, archive: Archive
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half")
    archiver = Archiver(log, archive)
    await archiver.copy_once()
    assert texts(archive) == ["hello"]
    await log.stop_reply(cid, lease.reply_id)
    await archiver.copy_once()
    assert texts(archive) == ["hello", "Half"]
