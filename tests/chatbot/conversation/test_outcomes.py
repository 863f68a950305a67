"""The table "What meets a running reply" of docs/architecture.md, row by row."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation.events import Accepted, ConversationId, Lease, Status
from chatbot.conversation.interface import ConversationLog
from chatbot.errors import Conflict
from tests.chatbot.conversation.conftest import ATTEMPTS, LEASE
from tests.chatbot.conversation.steps import (
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
)

HERE = "chatbot/conversation/test_outcomes.py"
RESTORE = "chatbot/conversation/test_restore.py"
UPKEEP = "chatbot/conversation/test_upkeep.py"
ROWS = {  # what happens -> (file, test)
    "new visitor message": (HERE, "test_a_new_message_waits_for_its_own_reply"),
    "`reply.stop`": (HERE, "test_stop_ends_the_reply_with_the_text_so_far"),
    "hand-over asked, agent claims, conversation closed": (
        HERE,
        "test_after_a_hand_over_no_bot_text",
    ),
    "client disconnects": (HERE, "test_a_reader_that_goes_changes_nothing"),
    "version promoted": (HERE, "test_the_version_that_began_a_reply_ends_it"),
    "worker dies": (HERE, "test_a_silent_worker_is_replaced_and_the_text_goes_on"),
    "the person is erased": (UPKEEP, "test_a_reply_that_is_being_written_is_lost"),
    "worker is stopped beyond its lease and goes on": (
        HERE,
        "test_a_worker_that_slept_may_not_write",
    ),
    "server dies": (HERE, "test_what_a_dead_server_took_is_taken_once"),
    "store restarts": (RESTORE, "test_a_kill_loses_nothing_that_was_acknowledged"),
    "store loses data": (RESTORE, "test_an_unanswered_question_is_asked_again_after_a_flush"),
    "client is gone for a day": (HERE, "test_whoever_was_away_gets_exactly_what_was_missed"),
    "two tabs, two servers": (HERE, "test_two_writers_make_one_order"),
}


def test_every_row_of_the_table_has_its_test() -> None:
    text = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    table = text.split("### What meets a running reply")[1].split("## ")[0]
    rows = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[2:]
    assert rows == list(ROWS)
    tests = Path(__file__).parents[2]
    for file, name in ROWS.values():
        assert f"async def {name}(" in (tests / file).read_text()


async def test_a_new_message_waits_for_its_own_reply(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid, "first")
    lease = await streaming(log, "Answer ")
    await ask(log, cid, "second")
    await ask(log, cid, "third")
    assert await shape(log, cid) == ["visitor: first", "visitor: second", "visitor: third"]
    await no_job(log)  # one reply at a time
    assert await log.append_delta(lease, 7, "one") == "written"
    assert await complete(log, lease, "Answer one") == "written"
    following = await take(log)
    assert following.upto == 4
    assert following.reply_id != lease.reply_id
    await log.start_reply(following, "v-1")
    await log.append_delta(following, 0, "Answer two and three")
    await complete(log, following, "Answer two and three")
    await no_job(log)
    replies = [e.data["upto"] for e in await events_of(log, cid) if e.type == "reply.completed"]
    assert replies == [1, 4]


async def test_stop_ends_the_reply_with_the_text_so_far(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half a")
    assert await log.stop_reply(cid, lease.reply_id)
    assert await shape(log, cid) == ["visitor: hello", "bot (stopped): Half a"]
    assert await live_of(log, cid) is None
    await _everything_is_refused(log, lease)
    assert not await log.stop_reply(cid, lease.reply_id)
    await no_job(log)  # stopped is stopped
    assert await shape(log, cid) == ["visitor: hello", "bot (stopped): Half a"]


async def test_stop_lets_the_next_message_be_answered(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log)
    await ask(log, cid, "something else")
    assert await log.stop_reply(cid, lease.reply_id)
    assert (await take(log)).upto == 3


async def test_stop_reaches_a_reply_that_waits_for_its_next_worker(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half a")
    await log.release(lease)
    assert await log.stop_reply(cid, lease.reply_id)
    await no_job(log)
    assert await shape(log, cid) == ["visitor: hello", "bot (stopped): Half a"]


@pytest.mark.parametrize(("status", "agent"), [("waiting", ""), ("human", "anna"), ("closed", "")])
async def test_after_a_hand_over_no_bot_text(
    log: ConversationLog, status: Status, agent: str
) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half a")
    await log.change_status(cid, status, reason="why", actor="who", agent=agent)
    expected = ["visitor: hello", "bot (handoff): Half a", f"bot -> {status} (why)"]
    assert await shape(log, cid) == expected
    assert await live_of(log, cid) is None
    await _everything_is_refused(log, lease)
    await no_job(log)
    assert await shape(log, cid) == expected


@pytest.mark.parametrize("begun", [False, True])
async def test_a_hand_over_before_the_first_word(log: ConversationLog, begun: bool) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await take(log)
    if begun:
        await log.start_reply(lease, "v-1")
    await log.change_status(cid, "waiting", reason="asked", actor="visitor")
    cut = ["bot (handoff): "] if begun else []  # readers who saw it begin see it end
    assert await shape(log, cid) == ["visitor: hello", *cut, "bot -> waiting (asked)"]
    await log.change_status(cid, "bot", reason="given back", actor="anna")
    assert (await take(log)).upto == len(cut) + 3  # nothing was answered: the bot's turn again


async def test_a_hand_over_takes_a_job_that_nobody_took(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    await no_job(log)
    assert await shape(log, cid) == ["visitor: hello", "bot -> human (claimed)"]


async def test_a_hand_over_raced_with_generation(log: ConversationLog) -> None:
    """Whatever the moment, the text in the log is what was streamed and nothing follows it."""
    for number in range(20):
        cid = await begin(log, f"race{number}")
        await ask(log, cid)
        lease = await take(log)
        await log.start_reply(lease, "v-1")
        shown = ""

        async def write(lease: Lease = lease) -> str:
            text = ""
            for _ in range(50):
                if await log.append_delta(lease, len(text), "ab ") == "lost":
                    return text
                text += "ab "
                await asyncio.sleep(0)
            return text

        async def claim(cid: ConversationId = cid, number: int = number) -> None:
            for _ in range(number):
                await asyncio.sleep(0)
            await log.change_status(cid, "human", reason="claimed", actor="a", agent="a")

        shown, _ = await asyncio.gather(write(), claim())
        assert await shape(log, cid) == [
            "visitor: hello",
            f"bot (handoff): {shown}",
            "bot -> human (claimed)",
        ]


async def test_a_worker_that_slept_may_not_write(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    slept = await streaming(log, "Half ")
    await asyncio.sleep(1.5 * LEASE)
    awake = await take(log)
    assert (awake.streamed, awake.reply_id) == ("Half ", slept.reply_id)
    await _everything_is_refused(log, slept)
    await log.start_reply(awake, "v-1")
    assert await log.append_delta(awake, 5, "done") == "written"
    await _everything_is_refused(log, slept)
    assert await complete(log, awake, "Half done") == "written"
    assert await shape(log, cid) == ["visitor: hello", "bot (end): Half done"]


async def test_what_a_dead_server_took_is_taken_once(log: ConversationLog) -> None:
    """It died between the log and the acknowledgement; the client asks another one."""
    cid = await begin(log)

    async def send() -> Accepted:
        return await log.append_message(
            cid, role="visitor", text="hello", client_message_id="m-1", author="v1"
        )

    first, again = await send(), await send()
    assert (first.offset, again.offset, again.duplicate) == (1, 1, True)
    await answer(log)
    assert (await send()).duplicate
    await no_job(log)  # nor is it answered twice
    assert await shape(log, cid) == ["visitor: hello", "bot (end): Hi there"]


async def test_whoever_was_away_gets_exactly_what_was_missed(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await streaming(log, "Half a")
    seen = await log.catch_up(cid, None, None)
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    for number in range(150):
        await log.append_message(
            cid, role="agent", text=f"{number}", client_message_id=f"a{number}", author="anna"
        )
        await ask(log, cid, f"{number}?")
    missed = await log.catch_up(cid, seen.head.epoch, seen.head.offset)
    assert missed.recovered
    assert missed.live is None
    first = seen.head.offset + 1
    assert [event.offset for event in missed.events] == list(range(first, first + 302))
    assert missed.events == (await events_of(log, cid))[1:]


async def test_a_reader_that_goes_changes_nothing(log: ConversationLog) -> None:
    cid = await begin(log)
    changes = log.changes()
    assert await anext(changes) is None
    await ask(log, cid)
    lease = await streaming(log, "Half ")
    before = await log.catch_up(cid, None, None)
    await changes.aclose()  # type: ignore[attr-defined]
    assert await log.append_delta(lease, 5, "done") == "written"
    assert await complete(log, lease, "Half done") == "written"
    after = await log.catch_up(cid, before.head.epoch, before.head.offset)
    assert after.recovered
    assert [event.data["text"] for event in after.events] == ["Half done"]


async def test_the_version_that_began_a_reply_ends_it(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    first = await streaming(log, "Half ")
    await log.release(first)
    second = await take(log)
    live = await live_of(log, cid)
    assert live is not None
    assert live.version == "v-1"
    with pytest.raises(Conflict):
        await log.start_reply(second, "v-2")  # promoted meanwhile
    assert await log.start_reply(second, "v-1") == "written"
    await log.append_delta(second, 5, "done")
    await complete(log, second, "Half done")
    await ask(log, cid, "next")
    third = await take(log)
    assert await log.start_reply(third, "v-2") == "written"
    assert await complete(log, third, "", version="v-2") == "written"
    versions = [e.data["version"] for e in await events_of(log, cid) if "version" in e.data]
    assert versions == ["v-1", "v-2"]


async def test_a_silent_worker_is_replaced_and_the_text_goes_on(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    dead = await streaming(log, "One 🙂 ")
    await no_job(log)  # it is not silent yet
    second = await take(log, LEASE * 5)
    assert (second.reply_id, second.streamed) == (dead.reply_id, "One 🙂 ")
    assert (second.attempt, second.upto) == (2, 1)
    await log.start_reply(second, "v-1")
    assert await log.append_delta(second, 6, "two") == "written"
    await _everything_is_refused(log, dead)  # it was only slow: its fence is old
    assert await complete(log, second, "One 🙂 two") == "written"
    assert await shape(log, cid) == ["visitor: hello", "bot (end): One 🙂 two"]
    await no_job(log)


async def test_a_worker_that_renews_keeps_its_reply(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await take(log)
    for _ in range(8):
        assert await log.renew(lease) == "written"
        assert await log.take_job("other", LEASE / 4) is None
    await log.start_reply(lease, "v-1")
    assert await complete(log, lease, "") == "written"


async def test_after_the_last_attempt_people_take_over(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half")
    for attempt in range(2, ATTEMPTS + 1):
        lease = await take(log, LEASE * 5)
        assert lease.attempt == attempt
    assert await log.take_job("w", LEASE * 3) is None
    assert await shape(log, cid) == [
        "visitor: hello",
        "failed (attempts): Half",
        "bot -> waiting (reply_failed)",
    ]
    await _everything_is_refused(log, lease)
    await ask(log, cid, "hello?")
    await no_job(log)  # it is with people now
    await log.change_status(cid, "bot", reason="given back", actor="anna")
    await answer(log)


async def test_a_failed_reply_hands_over(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half")
    assert await log.fail_reply(lease, version="v-1", reason="refused") == "written"
    assert await log.fail_reply(lease, version="v-1", reason="refused") == "written"  # sent again
    assert await shape(log, cid) == [
        "visitor: hello",
        "failed (refused): Half",
        "bot -> waiting (reply_failed)",
    ]
    await no_job(log)


async def test_two_writers_make_one_order(log: ConversationLog) -> None:
    cid = await begin(log)
    await asyncio.gather(*(ask(log, cid, f"tab {n % 2} message {n}") for n in range(20)))
    events = await events_of(log, cid)  # asserts contiguous offsets
    assert len({event.data["text"] for event in events}) == 20
    head = await log.head(cid)
    assert head is not None
    assert head.offset == 20
    await take(log)
    await no_job(log)  # one bot turn


async def _everything_is_refused(log: ConversationLog, lease: Lease) -> None:
    usage: dict[str, Any] = {"usage": {}, "confidence": None, "seconds": 0.0}
    assert await log.start_reply(lease, "v-1") == "lost"
    assert await log.append_delta(lease, 6, "more") == "lost"
    assert await log.renew(lease) == "lost"
    outcome = await log.complete_reply(
        lease, text="Half a", finish_reason="end", version="v-1", **usage
    )
    assert outcome == "lost"
    assert await log.fail_reply(lease, version="v-1", reason="late") == "lost"
    await log.release(lease)
