"""Erasing and closing, in memory and on Redis alike."""

import pytest

from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.interface import ConversationLog
from chatbot.errors import NotFound
from tests.chatbot.conversation.steps import (
    VISITOR,
    answer,
    ask,
    begin,
    complete,
    live_of,
    no_job,
    shape,
    streaming,
)

LATER = 10**15  # ms


async def test_nothing_is_left_and_the_same_id_begins_anew(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await answer(log)
    old = await log.head(cid)
    assert old is not None
    assert await log.erase(cid, await log.now_ms()) is True
    assert await log.head(cid) is None
    with pytest.raises(NotFound):
        await log.read(cid)
    assert await log.open_conversations() == []
    assert await log.unrecorded() == []
    await begin(log)
    head = await log.head(cid)
    assert head is not None
    assert head.offset == 0
    assert head.created_at > old.created_at
    assert not (await log.catch_up(cid, old.epoch, old.offset)).recovered
    await ask(log, cid)
    await answer(log)
    assert await shape(log, cid) == ["visitor: hello", "bot (end): Hi there"]


async def test_a_reply_that_is_being_written_is_lost(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "So far")
    await log.erase(cid, await log.now_ms())
    assert await log.append_delta(lease, 6, " and on") == "lost"
    assert await log.renew(lease) == "lost"
    assert await complete(log, lease, "So far") == "lost"
    assert await log.fail_reply(lease, version="v-1", reason="x") == "lost"
    await log.release(lease)
    await no_job(log)
    await begin(log)  # the visitor is back: the old worker still cannot write
    await ask(log, cid)
    assert await log.append_delta(lease, 6, " and on") == "lost"
    assert await live_of(log, cid) is None


async def test_a_job_that_waits_is_dropped(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await log.erase(cid, await log.now_ms())
    await no_job(log)


async def test_erasing_twice_and_what_began_since(log: ConversationLog) -> None:
    cid = await begin(log)
    at = await log.now_ms()
    assert await log.erase(cid, at) is True
    assert await log.erase(cid, at) is False
    await begin(log)
    await ask(log, cid)
    assert await log.erase(cid, at) is False  # as when the first try is repeated
    assert await shape(log, cid) == ["visitor: hello"]


async def test_a_rule_does_not_delete_what_was_said_since(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    head = await log.head(cid)
    assert head is not None
    assert await log.erase(cid, LATER, head.updated_at - 1) is None
    assert await shape(log, cid) == ["visitor: hello"]
    assert await log.erase(cid, LATER, head.updated_at) is True


async def test_whose_they_are(log: ConversationLog) -> None:
    mine = [await begin(log, name) for name in ("c1", "c2")]
    await log.create(ConversationId("c3"), site="other", visitor=VISITOR)
    await log.create(ConversationId("c4"), site="demo", visitor=VisitorId("v10"))
    assert sorted(await log.conversations_of("demo", VISITOR, LATER)) == mine
    assert await log.conversations_of("demo", VISITOR, 0) == []
    assert await log.conversations_of("demo", VisitorId("nobody"), LATER) == []


async def test_an_idle_conversation_is_closed_once(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await answer(log)
    head = await log.head(cid)
    assert head is not None
    assert [item async for item in log.idle(head.updated_at - 1)] == []
    assert [item async for item in log.idle(LATER)] == [(cid, "demo", head.updated_at)]
    assert not await log.close_idle(cid, head.updated_at - 1)
    assert await log.close_idle(cid, head.updated_at)
    assert not await log.close_idle(cid, LATER)
    assert (await shape(log, cid))[-1] == "bot -> closed (idle)"
    assert [item async for item in log.idle(LATER)] == []
    await ask(log, cid, "back again")
    assert (await shape(log, cid))[-1] == "visitor: back again"
    assert not await log.close_idle(ConversationId("nowhere"), LATER)


async def test_who_waits_for_a_reply_is_not_idle(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    assert not await log.close_idle(cid, LATER)
    lease = await streaming(log, "Hi")
    assert not await log.close_idle(cid, LATER)
    await complete(log, lease, "Hi")
    assert await log.close_idle(cid, LATER)
