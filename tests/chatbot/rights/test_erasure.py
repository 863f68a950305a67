"""A person is erased everywhere, stays erased, and the receipt is true."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from chatbot.conversation.archive import Archiver, ConversationFilter
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.log import RedisLog
from chatbot.errors import Erased, Held, RequestRefused, StoreUnavailable
from chatbot.record.tables import Audit, Base, Conversation
from chatbot.rights import deletion
from chatbot.rights.erasure import Eraser
from chatbot.rights.holds import lift_hold, list_holds, place_hold
from chatbot.rights.keeper import Keeper
from chatbot.rights.people import Person, describe, person_of_conversation, person_of_visitor
from chatbot.services import Services
from tests.chatbot.conversation.steps import ask, shape, streaming
from tests.chatbot.recorded import review
from tests.chatbot.rights.conftest import ANNA, Talk

BEN = Person("demo", "v-ben")


async def _keys(redis: Redis) -> list[str]:
    return [key for key in await redis.keys("*") if ":jobs" not in key]


async def test_nothing_of_a_person_is_left_and_others_stay(
    services: Services, redis: Redis, eraser: Eraser, talk: Talk
) -> None:
    await talk("c1", "my name is Anna Canary")
    await talk("c2", "Canary again", recorded=False)
    ben = await talk("c3", "I am Ben", person=BEN)
    review(services.database, "c1", 2, "bad", "Hello Canary")
    steps: list[tuple[int, int]] = []
    receipt = await eraser.erase(
        ANNA, actor="ada", reason="she asked", on_progress=lambda *step: steps.append(step)
    )
    assert (receipt.state, receipt.conversations) == ("done", ["c1", "c2"])
    assert (receipt.events, receipt.reviews) == (4, 1)
    assert steps == [(0, 2), (1, 2), (2, 2)]
    for key in await _keys(redis):
        assert "c1" not in key.rpartition(":")[2] or "gone" in key
        assert "Canary" not in str(await redis.dump(key))
    with services.database.session() as session:
        for table in Base.metadata.sorted_tables:
            assert "Canary" not in str(session.execute(select(table)).all()), table.name
    found = services.archive.search(ConversationFilter(q="canary"))
    assert found.items == []
    assert await shape(services.log, ben) == ["visitor: I am Ben", "bot (end): Hi there"]
    assert services.archive.recorded(ben) == 2
    with services.database.session() as session:
        actions = session.scalars(select(Audit.action).order_by(Audit.id)).all()
    assert actions[-2:] == ["person.erase", "person.erased"]


async def test_every_table_that_belongs_to_a_conversation_is_emptied(
    services: Services, eraser: Eraser, talk: Talk
) -> None:
    """Also those that somebody adds later: whatever has a conversation_id."""
    await talk("c1")
    tables = [
        table
        for table in Base.metadata.sorted_tables
        if "conversation_id" in table.c and table.name not in deletion.KEPT
    ]
    assert {"events", "reviews"} <= {table.name for table in tables}
    await eraser.erase(ANNA, actor="ada", reason="asked")
    with services.database.session() as session:
        for table in tables:
            assert session.execute(select(table)).all() == [], table.name


async def test_erasing_twice(services: Services, eraser: Eraser, talk: Talk) -> None:
    await talk("c1")
    both = await asyncio.gather(
        eraser.erase(ANNA, actor="ada", reason="asked", request_id="r1"),
        eraser.erase(ANNA, actor="ada", reason="asked", request_id="r1"),
    )
    assert both[0].id == both[1].id
    again = await eraser.erase(ANNA, actor="ada", reason="asked", request_id="r1")
    assert (again.id, again.conversations) == (both[0].id, ["c1"])
    other = await eraser.erase(ANNA, actor="ada", reason="asked once more")
    assert (other.state, other.conversations, other.events) == ("done", [], 0)
    with pytest.raises(RequestRefused, match="another person"):
        await eraser.erase(BEN, actor="ada", reason="asked", request_id="r1")
    with pytest.raises(RequestRefused, match="reason"):
        await eraser.erase(ANNA, actor="ada", reason=" ")


async def test_a_copy_that_comes_late_is_dropped(
    services: Services, eraser: Eraser, talk: Talk
) -> None:
    cid = await talk("c1", recorded=False)
    late = await services.log.catch_up(cid, None, None)
    await eraser.erase(ANNA, actor="ada", reason="asked")
    assert services.archive.store(late.head, late.events)
    assert services.archive.load(cid) is None


async def test_the_archiver_copies_while_a_person_is_erased(
    services: Services, redis: Redis, eraser: Eraser, talk: Talk
) -> None:
    """Several archivers against the erasure, over and over: nothing ever comes back."""
    logs = [RedisLog(redis, services.archive, 1.0, 3) for _ in range(2)]
    for turn in range(5):
        for number in range(4):
            await talk(f"t{turn}-{number}", "Canary", recorded=False)
        await asyncio.gather(
            *(Archiver(log, services.archive).copy_once() for log in logs),
            eraser.erase(ANNA, actor="ada", reason="asked"),
            *(Archiver(log, services.archive).copy_once() for log in logs),
        )
        await Archiver(services.log, services.archive).copy_once()
        assert await services.log.unrecorded() == []
        with services.database.session() as session:
            assert session.scalars(select(Conversation.id)).all() == []
        assert [key for key in await _keys(redis) if "gone" not in key] == []


async def test_a_conversation_that_is_being_erased_waits_to_be_copied(
    services: Services, talk: Talk
) -> None:
    """Marked, and not decided yet: the archiver neither stores it nor thinks it done."""
    cid = await talk("c1", recorded=False)
    with services.database.session() as session:
        deletion.mark(session, [cid], await services.log.now_ms(), only_before=1)
    assert await Archiver(services.log, services.archive).copy_once() == 0
    assert await services.log.unrecorded() == [(cid, 2)]
    assert (await deletion.carry_out(services.database, services.log, cid)).kept
    assert await Archiver(services.log, services.archive).copy_once() == 1
    assert services.archive.recorded(cid) == 2


async def test_a_restore_that_was_under_way_brings_nothing_back(
    services: Services, redis: Redis, eraser: Eraser, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = await talk("c1")
    await redis.flushdb()
    loop = asyncio.get_running_loop()
    load = services.archive.load

    def slow(name: ConversationId) -> Any:
        """Read, and before anything is done with it, the person is erased."""
        found = load(name)
        if found is not None:
            monkeypatch.setattr(services.archive, "load", load)
            erased = eraser.erase(ANNA, actor="ada", reason="asked")
            asyncio.run_coroutine_threadsafe(erased, loop).result(30)
        return found

    monkeypatch.setattr(services.archive, "load", slow)
    with pytest.raises(Erased):
        await services.log.catch_up(cid, None, None)
    assert [key for key in await _keys(redis) if "gone" not in key] == []


async def test_after_a_flush_nothing_is_restored(
    services: Services, redis: Redis, eraser: Eraser, talk: Talk
) -> None:
    cid = await talk("c1")
    await eraser.erase(ANNA, actor="ada", reason="asked")
    await redis.flushdb()
    assert await services.log.restore_open() == 0
    with pytest.raises(Erased):
        await services.log.catch_up(cid, None, None)


async def test_who_comes_back_begins_anew_and_is_recorded(
    services: Services, redis: Redis, eraser: Eraser, talk: Talk
) -> None:
    """The main conversation has the same id again, also after a flush of the store."""
    cid = await talk("c1", "old words")
    for number in range(2):
        await eraser.erase(ANNA, actor="ada", reason="asked")
        if number:
            await redis.flushdb()
        await services.log.create(cid, site="demo", visitor=VisitorId(ANNA.visitor))
        assert await shape(services.log, cid) == []
        await ask(services.log, cid, f"new words {number}")
        await Archiver(services.log, services.archive).copy_once()
        loaded = services.archive.load(cid)
        assert loaded is not None
        assert [event.data["text"] for event in loaded[1]] == [f"new words {number}"]


async def test_an_erasure_that_was_cut_off_is_brought_to_its_end(
    services: Services, eraser: Eraser, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await talk("c1")
    await talk("c2")
    erase = services.log.erase

    async def away(name: ConversationId, *rest: Any) -> bool | None:
        if name == "c2":
            raise StoreUnavailable("the conversation store cannot be used now")
        return await erase(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RedisLog, "erase", lambda _, *args: away(*args))
        with pytest.raises(StoreUnavailable):
            await eraser.erase(ANNA, actor="ada", reason="asked", request_id="r1")
    running = (await eraser.receipt(eraser.all()[0].id)).state
    assert running == "running"
    # meanwhile the person says something new, which is not part of it
    new = await talk("c9", "new words", recorded=False)
    assert await eraser.resume(before=2**60) == 1
    receipt = await eraser.erase(ANNA, actor="ada", reason="asked", request_id="r1")
    assert (receipt.state, receipt.conversations) == ("done", ["c1", "c2"])
    assert receipt.events == 4
    assert await shape(services.log, new) == ["visitor: new words", "bot (end): Hi there"]
    assert deletion.pending(services.database, 2**60) == []


async def test_a_store_that_forgot_the_erasing_is_told_again(
    services: Services, redis: Redis, eraser: Eraser, talk: Talk
) -> None:
    """A crash of the store lost its last writes: the log is there again, under another run."""
    cid = await talk("c1", "Canary")
    kept = {key: await redis.dump(key) for key in await _keys(redis)}
    await eraser.erase(ANNA, actor="ada", reason="asked")
    await redis.flushdb()
    for key, value in kept.items():
        await redis.restore(key, 0, value)  # type: ignore[arg-type]
    keeper = Keeper(services)
    await keeper.apply_rules()
    assert await services.log.open_conversations() == []
    with pytest.raises(Erased):
        await services.log.catch_up(cid, None, None)


async def test_touching_it_is_enough_after_a_restart(
    services: Services, redis: Redis, eraser: Eraser, talk: Talk
) -> None:
    cid = await talk("c1", "Canary")
    kept = {key: await redis.dump(key) for key in await _keys(redis)}
    await eraser.erase(ANNA, actor="ada", reason="asked")
    await redis.flushdb()
    for key, value in kept.items():
        await redis.restore(key, 0, value)  # type: ignore[arg-type]
        if ":head:" in key:
            await redis.hset(key, "run", "an earlier run")  # type: ignore[misc]
    assert await services.log.head(cid) is None
    assert [key for key in await _keys(redis) if "gone" not in key] == []


async def test_a_running_reply_is_stopped(services: Services, eraser: Eraser, talk: Talk) -> None:
    cid = await talk("c1", recorded=False)
    await ask(services.log, cid, "and now?")
    lease = await streaming(services.log, "Well, Anna")
    await eraser.erase(ANNA, actor="ada", reason="asked")
    assert await services.log.append_delta(lease, 10, " …") == "lost"


async def test_a_hold_beats_an_erasure(services: Services, eraser: Eraser, talk: Talk) -> None:
    cid = await talk("c1")
    hold, new = place_hold(services.database, ANNA, "ada", "case 12/34")
    assert new
    assert place_hold(services.database, ANNA, "bob", "another")[0].id == hold.id
    with pytest.raises(Held, match=r"case 12/34.*placed by ada"):
        await eraser.erase(ANNA, actor="ada", reason="asked")
    assert services.archive.recorded(cid) == 2
    assert eraser.all() == []
    lift_hold(services.database, hold.id, "ada", "case closed")
    lift_hold(services.database, hold.id, "bob", "again")
    [ended] = list_holds(services.database)
    assert (ended.lifted_by, ended.lift_reason) == ("ada", "case closed")
    assert (await eraser.erase(ANNA, actor="ada", reason="asked")).conversations == ["c1"]
    assert place_hold(services.database, ANNA, "ada", "another case")[1]
    with pytest.raises(RequestRefused, match="reason"):
        place_hold(services.database, ANNA, "ada", "")


async def test_a_person_is_found(services: Services, eraser: Eraser, talk: Talk) -> None:
    await talk("c1")
    await talk("c2", recorded=False)
    found = await describe(services.database, services.log, ANNA)
    assert (found.conversations, found.messages) == (["c1", "c2"], 2)
    assert await person_of_conversation(services.database, services.log, "c2") == ANNA
    assert person_of_visitor(services.database, "v-anna") == ANNA
    await eraser.erase(ANNA, actor="ada", reason="asked")
    assert person_of_visitor(services.database, "v-anna") == ANNA  # to read the receipt
    with pytest.raises(Exception, match="it was erased"):
        await person_of_conversation(services.database, services.log, "c1")
    with pytest.raises(Exception, match="nothing of a visitor v-nobody"):
        person_of_visitor(services.database, "v-nobody")
