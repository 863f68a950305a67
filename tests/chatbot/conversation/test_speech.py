"""Calls: what is spoken becomes messages once, in a clear order; partials stay beside the log."""

import asyncio

import pytest
from redis.asyncio import Redis

from chatbot.conversation import keys
from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, Event, Partial
from chatbot.conversation.interface import ConversationLog
from chatbot.conversation.log import RedisLog
from chatbot.conversation.rules import turn_after
from chatbot.conversation.transcript import conversation_messages
from chatbot.errors import Conflict, RequestRefused
from tests.chatbot.conversation.steps import begin

KEEP = 30.0


async def call(log: ConversationLog) -> ConversationId:
    cid = await begin(log)
    await log.change_status(cid, "human", reason="call", actor="anna", agent="anna")
    return cid


async def say(log: ConversationLog, cid: ConversationId, who: str, text: str, at: int) -> int:
    accepted = await log.append_utterance(
        cid,
        speaker="visitor" if who == "customer" else "agent",
        text=text,
        utterance_id=text.replace(" ", "-"),
        spoken_at=at,
    )
    assert not accepted.duplicate
    return accepted.offset


async def question(log: ConversationLog, cid: ConversationId) -> int | None:
    head = await log.head(cid)
    assert head is not None
    return head.question


async def events(log: ConversationLog, cid: ConversationId) -> list[Event]:
    return [event for event in await log.read(cid) if event.type == "message.created"]


async def test_an_utterance_is_kept_once_and_asks_or_answers(log: ConversationLog) -> None:
    cid = await call(log)
    asked = await say(log, cid, "customer", "where is it", 1000)
    assert await question(log, cid) == asked
    for speaker in ("visitor", "agent"):  # an id is one utterance, whoever said it
        again = await log.append_utterance(
            cid,
            speaker=speaker,
            text="other",
            utterance_id="where-is-it",
            spoken_at=5,  # type: ignore[arg-type]
        )
        assert (again.offset, again.duplicate) == (asked, True)
    await say(log, cid, "agent", "one moment", 2000)
    assert await question(log, cid) is None
    first, second = await events(log, cid)
    assert first.data == {
        "role": "visitor",
        "text": "where is it",
        "client_message_id": "where-is-it",
        "spoken_at": 1000,
        "author": "v1",
    }
    assert second.data["author"] == "anna"


async def test_what_was_said_before_the_answer_is_no_open_question(log: ConversationLog) -> None:
    cid = await call(log)
    await say(log, cid, "customer", "where is it", 1000)
    answer = await say(log, cid, "agent", "it comes tomorrow", 3000)
    await say(log, cid, "customer", "order seven", 2000)
    assert await question(log, cid) is None
    late = (await events(log, cid))[-1]
    assert late.data["late"] == answer
    assert [m["content"] for m in conversation_messages(await log.read(cid), "")] == [
        "where is it",
        "order seven",
        "it comes tomorrow",
    ]
    assert turn_after(await log.read(cid)).asked < answer  # the same from the record


async def test_what_the_agent_said_before_the_question_does_not_answer_it(
    log: ConversationLog,
) -> None:
    cid = await call(log)
    asked = await say(log, cid, "customer", "and the other one", 3000)
    await say(log, cid, "agent", "you are welcome", 2000)
    assert await question(log, cid) == asked
    turn = turn_after(await log.read(cid))
    assert turn.asked > turn.answered


async def test_partials_replace_each_other_and_end_with_the_final(log: ConversationLog) -> None:
    cid = await call(log)

    async def put(text: str, at: int, name: str = "u1") -> str:
        partial = Partial(name, "visitor", text, at)
        return await log.put_partial(cid, partial, keep_seconds=KEEP, most=2)

    assert await put("where", 1000) == "kept"
    assert await put("where is", 1100) == "kept"
    assert await put("wh", 1050) == "stale"
    assert await put("hello", 900, "u0") == "kept"
    with pytest.raises(RequestRefused):
        await put("third", 1200, "u2")
    shown = await log.partials(cid, KEEP)
    assert [(p.id, p.text) for p in shown] == [("u0", "hello"), ("u1", "where is")]
    assert await events(log, cid) == []
    await log.append_utterance(
        cid, speaker="visitor", text="where is it", utterance_id="u1", spoken_at=1000
    )
    assert await put("where is it now", 9000) == "final"
    assert [p.id for p in await log.partials(cid, KEEP)] == ["u0"]


async def test_a_partial_whose_final_never_came_is_forgotten(log: ConversationLog) -> None:
    cid = await call(log)
    await log.put_partial(cid, Partial("u1", "visitor", "where", 1), keep_seconds=0.05, most=1)
    await asyncio.sleep(0.1)
    assert await log.partials(cid, 0.05) == []
    new = Partial("u2", "visitor", "there", 2)
    assert await log.put_partial(cid, new, keep_seconds=0.05, most=1) == "kept"


async def test_nothing_is_taken_when_the_call_is_over(log: ConversationLog) -> None:
    cid = await call(log)
    await log.put_partial(cid, Partial("u1", "visitor", "where", 1), keep_seconds=KEEP, most=5)
    await log.change_status(cid, "closed", reason="done", actor="anna")
    assert await log.partials(cid, KEEP) == []
    with pytest.raises(Conflict):
        await say(log, cid, "customer", "too late", 5)
    with pytest.raises(Conflict):
        await log.put_partial(cid, Partial("u2", "visitor", "x", 1), keep_seconds=KEEP, most=5)
    head = await log.head(cid)
    assert head is not None
    assert head.status == "closed"  # it was not opened again, and the bot owes nothing


async def test_erasing_leaves_no_partial(redis_log: RedisLog, redis: Redis) -> None:
    cid = await call(redis_log)
    await redis_log.put_partial(
        cid, Partial("u1", "visitor", "secret", 1), keep_seconds=KEEP, most=5
    )
    assert await redis.exists(keys.keys_of(cid).talk)
    assert await redis_log.erase(cid, await redis_log.now_ms())
    assert not await redis.exists(keys.keys_of(cid).talk)


async def test_a_call_that_the_store_lost_goes_on_as_it_stood(
    recorded_log: RedisLog, archive: Archive, redis: Redis
) -> None:
    cid = await call(recorded_log)
    asked = await say(recorded_log, cid, "customer", "where is it", 3000)
    await say(recorded_log, cid, "agent", "hello there", 1000)
    head = await recorded_log.head(cid)
    assert head is not None
    archive.store(head, await recorded_log.read(cid))
    await redis.flushdb()
    assert await question(recorded_log, cid) == asked
    again = await recorded_log.append_utterance(
        cid, speaker="agent", text="hello", utterance_id="hello-there", spoken_at=1
    )
    assert again.duplicate
