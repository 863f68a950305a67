"""Rules of sites, and carrying them out: in batches, resumed, by several at once."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from sqlalchemy import select

from chatbot.conversation import keys
from chatbot.conversation.archive import Archiver
from chatbot.errors import Conflict
from chatbot.record.tables import Conversation, ErasedConversation
from chatbot.rights import deletion, retention
from chatbot.rights.erasure import Eraser
from chatbot.rights.holds import place_hold
from chatbot.rights.keeper import Keeper
from chatbot.rights.people import Person
from chatbot.rights.retention import close_idle, delete_due, set_site_retention, site_retention
from chatbot.rights.rules import DAY_MS, HOUR_MS, Overrides, Retention, effective
from chatbot.services import Services
from tests.chatbot.conversation.steps import ask, shape
from tests.chatbot.rights.conftest import ANNA, Talk

BEN = Person("demo", "v-ben")


def names(services: Services) -> list[str]:
    with services.database.session() as session:
        return sorted(session.scalars(select(Conversation.id)))


def test_a_site_s_own_numbers_win_and_zero_is_never() -> None:
    default = Retention(idle_close_hours=168, log_days=30, record_days=0)
    assert effective(Overrides(), default) == default
    mine = effective(Overrides(idle_close_hours=0, record_days=90), default)
    assert mine == Retention(0, 30, 90)
    assert mine.idle_before(10**13) is None
    assert default.record_before(10**13) is None
    assert default.idle_before(10**13) == 10**13 - 168 * HOUR_MS
    assert mine.record_before(10**13) == 10**13 - 90 * DAY_MS


@given(st.integers(1, 10**4), st.integers(1, 10**13))
def test_a_bound_is_always_before_now(days: int, now: int) -> None:
    bound = Retention(0, 1, days).record_before(now)
    assert bound is not None
    assert bound < now


async def test_old_conversations_go_and_young_and_held_ones_stay(
    services: Services, talk: Talk
) -> None:
    log, database = services.log, services.database
    await talk("old")
    await talk("held", person=BEN)
    place_hold(database, BEN, "ada", "a case")
    head = await log.head(await talk("young"))
    assert head is not None
    set_site_retention(database, "demo", Overrides(record_days=1), "ada")
    with database.session() as session:
        for name in ("old", "held"):
            session.get_one(Conversation, name).updated_at -= 2 * DAY_MS
    # the log's own clock decides: it has them as young as they are
    now = await log.now_ms()
    assert (found := site_retention(database, services.settings, "demo", now)).due == 1
    assert found.held == 1
    assert await delete_due(database, log, services.settings, now) == 0
    later = now + DAY_MS + HOUR_MS
    assert await delete_due(database, log, services.settings, later) == 2
    assert names(services) == ["held"]
    assert await log.head(head.conversation_id) is None
    with database.session() as session:
        marks = session.scalars(select(ErasedConversation)).all()
    assert {(mark.conversation_id, mark.pending) for mark in marks} == {
        ("old", False),
        ("young", False),
    }
    retention.forget_old_marks(database, later + 40 * DAY_MS)
    with database.session() as session:
        assert session.scalars(select(ErasedConversation)).all() == []


async def test_what_was_said_just_now_is_kept(services: Services, talk: Talk) -> None:
    """The record knows of nothing new yet, the log does."""
    cid = await talk("c1")
    set_site_retention(services.database, "demo", Overrides(record_days=1), "ada")
    now = await services.log.now_ms()
    with services.database.session() as session:
        session.get_one(Conversation, "c1").updated_at = now - 2 * DAY_MS
    await ask(services.log, cid, "I am back")
    assert await delete_due(services.database, services.log, services.settings, now) == 0
    await Archiver(services.log, services.archive).copy_once()
    assert services.archive.recorded(cid) == 3
    assert (await shape(services.log, cid))[-1] == "visitor: I am back"
    assert await delete_due(services.database, services.log, services.settings, now) == 0


async def test_two_at_once_delete_each_once(services: Services, talk: Talk) -> None:
    for number in range(6):
        await talk(f"c{number}")
    set_site_retention(services.database, "demo", Overrides(record_days=1), "ada")
    later = await services.log.now_ms() + 2 * DAY_MS
    counts = await asyncio.gather(
        *(delete_due(services.database, services.log, services.settings, later) for _ in range(3))
    )
    assert sum(counts) == 6
    assert names(services) == []


async def test_one_that_was_killed_is_resumed(
    services: Services, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk("c1")
    set_site_retention(services.database, "demo", Overrides(record_days=1), "ada")
    later = await services.log.now_ms() + 2 * DAY_MS

    async def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deletion, "carry_out", killed)
        with pytest.raises(KeyboardInterrupt):
            await delete_due(services.database, services.log, services.settings, later)
    with pytest.raises(Conflict, match="being deleted"):
        place_hold(services.database, ANNA, "ada", "too late")
    assert await retention.finish_pending(services.database, services.log, later) == 1
    assert names(services) == []
    assert place_hold(services.database, ANNA, "ada", "what comes")[1]


async def test_an_erasure_of_what_a_rule_deletes_at_the_moment(
    services: Services, eraser: Eraser, talk: Talk
) -> None:
    await talk("c1")
    set_site_retention(services.database, "demo", Overrides(record_days=1), "ada")
    later = await services.log.now_ms() + 2 * DAY_MS
    _, receipt = await asyncio.gather(
        delete_due(services.database, services.log, services.settings, later),
        eraser.erase(ANNA, actor="ada", reason="asked"),
    )
    assert receipt.state == "done"
    assert names(services) == []
    assert deletion.pending(services.database, 2**60) == []


async def test_idle_conversations_are_closed_by_their_site_s_rule(
    services: Services, talk: Talk
) -> None:
    log, database = services.log, services.database
    quick = await talk("quick")
    slow = await talk("slow", person=Person("gone-site", "v-x"))
    waiting = await talk("waiting")
    await ask(log, waiting, "hello?")  # a reply is owed
    set_site_retention(database, "demo", Overrides(idle_close_hours=1), "ada")
    now = await log.now_ms()
    assert await close_idle(database, log, services.settings, now) == 0
    assert await close_idle(database, log, services.settings, now + 2 * HOUR_MS) == 1
    assert (await shape(log, quick))[-1] == "bot -> closed (idle)"
    assert await close_idle(database, log, services.settings, now + 200 * HOUR_MS) == 1
    assert (await shape(log, slow))[-1] == "bot -> closed (idle)"
    never = services.settings.model_copy(update={"idle_close_hours": 0})
    set_site_retention(database, "demo", Overrides(), "ada")
    assert await close_idle(database, log, never, now + 10**12) == 0


async def test_a_closed_conversation_leaves_the_log_when_its_site_says(
    services: Services, redis: Redis, talk: Talk
) -> None:
    set_site_retention(services.database, "demo", Overrides(log_days=2), "ada")
    cid = await talk("c1")
    await services.log.change_status(cid, "closed", reason="done", actor="ada")
    await Archiver(services.log, services.archive).copy_once()
    days = 86400
    head = keys.keys_of(cid).head
    assert 2 * days - 60 < await redis.ttl(head) <= 2 * days
    await redis.delete(head)  # expired: whoever asks gets it from the record
    assert (await shape(services.log, cid))[-1] == "bot -> closed (done)"
    assert 2 * days - 60 < await redis.ttl(head) <= 2 * days


async def test_the_keeper_does_it_all(services: Services, talk: Talk) -> None:
    settings = services.settings.model_copy(update={"record_days": 1})
    keeper = Keeper(replace(services, settings=settings))
    await talk("c1")
    await keeper.apply_rules()
    assert names(services) == ["c1"]
    with services.database.session() as session:
        row = session.get_one(Conversation, "c1")
        row.updated_at -= 2 * DAY_MS
    await services.redis.hset(  # type: ignore[misc]
        keys.keys_of(row.id).head,  # type: ignore[arg-type]
        "updated",
        str(row.updated_at),
    )
    stop = asyncio.Event()
    task = asyncio.create_task(keeper.run(stop))
    async with asyncio.timeout(30):
        while names(services):  # noqa: ASYNC110 - another task works
            await asyncio.sleep(0.02)
    stop.set()
    await task
    assert await services.log.head(row.id) is None  # type: ignore[arg-type]
