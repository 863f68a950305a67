"""What every conversation log does, in memory and on Redis alike."""

import asyncio
from typing import Any

import pytest

from chatbot.conversation.events import ConversationId, ReplyId
from chatbot.conversation.interface import ConversationLog
from chatbot.conversation.log import RedisLog
from chatbot.errors import Conflict, InputError, NotFound
from tests.chatbot.conversation.conftest import ATTEMPTS, LEASE
from tests.chatbot.conversation.memory_log import MemoryLog
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
)

NOWHERE = ConversationId("nowhere")
TRICKY = [
    "plain",
    "é ß 漢字 🙂 👩‍👩‍👧",
    "quotes \" \\ / ' and {braces} [lists]",
    "line\u2028separator\u2029 and \x7f",
    "nul \x00 and \x1f control\n\t",
    "</script><b>",
    " leading and trailing ",
    "\ufeff\U0010ffff",
]


@pytest.fixture(params=["memory", "redis", "cluster"])
def log(request: pytest.FixtureRequest, redis_url: str) -> ConversationLog:
    """An empty log, also on a Redis Cluster. Nothing here waits for a lease to run out."""
    if request.param == "memory":
        return MemoryLog(LEASE, ATTEMPTS)
    client = request.getfixturevalue(request.param)
    return RedisLog(client, None, 60.0 if request.param == "cluster" else LEASE, ATTEMPTS)


async def test_a_conversation_begins_empty_with_the_bot(log: ConversationLog) -> None:
    cid = await begin(log)
    head = await log.head(cid)
    assert head is not None
    assert (head.offset, head.status, head.agent, head.kind) == (0, "bot", "", "chat")
    assert (head.site, head.visitor, head.pinned_version) == ("demo", VISITOR, "")
    catchup = await log.catch_up(cid, head.epoch, 0)
    assert catchup.recovered
    assert catchup.events == []
    assert catchup.live is None


async def test_what_staff_say_beside_the_talk_asks_and_answers_nothing(
    log: ConversationLog,
) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await take(log)
    data = {"tags": ["é", "vip"], "actor": "anna"}
    assert await log.append_staff_event(cid, "tags.changed", data) == 2
    assert (await events_of(log, cid))[-1].data == data
    await log.start_reply(lease, "v-1")
    await log.append_delta(lease, 0, "yes")
    assert await complete(log, lease, "yes") == "written"
    await no_job(log)


async def test_who_holds_a_conversation_hands_it_over(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    with pytest.raises(Conflict, match="anna holds"):
        await log.change_status(cid, "human", reason="mine", actor="ben", agent="ben")
    moved = await log.change_status(cid, "human", reason="r", actor="anna", agent="ben")
    assert (moved.status, moved.agent) == ("human", "ben")
    last = (await events_of(log, cid))[-1].data
    assert (last["previous"], last["actor"], last["agent"]) == ("human", "anna", "ben")
    with pytest.raises(Conflict):
        await log.append_message(cid, role="agent", text="hi", client_message_id="m", author="anna")


async def test_creating_again_gives_the_same_conversation(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    first = await log.head(cid)
    again = await log.create(cid, site="other", visitor=VISITOR)
    assert again == first


async def test_what_does_not_exist_is_not_found(log: ConversationLog) -> None:
    assert await log.head(NOWHERE) is None
    with pytest.raises(NotFound):
        await log.catch_up(NOWHERE, None, None)
    with pytest.raises(NotFound):
        await log.read(NOWHERE)
    with pytest.raises(NotFound):
        await ask(log, NOWHERE)
    with pytest.raises(NotFound):
        await log.change_status(NOWHERE, "waiting", reason="asked", actor="visitor")
    with pytest.raises(NotFound):
        await log.give_rating(NOWHERE, score=3, comment="")
    with pytest.raises(NotFound):
        await log.append_staff_event(NOWHERE, "tags.changed", {"tags": [], "actor": "anna"})
    with pytest.raises(NotFound):
        await log.stop_reply(NOWHERE, ReplyId("r"))


@pytest.mark.parametrize("text", TRICKY)
async def test_text_comes_back_as_it_was_sent(log: ConversationLog, text: str) -> None:
    cid = await begin(log)
    await ask(log, cid, text)
    lease = await take(log)
    await log.start_reply(lease, "v-1")
    for place, character in enumerate(text):
        assert await log.append_delta(lease, place, character) == "written"
    live = await live_of(log, cid)
    assert live is not None
    assert live.text == text
    assert await complete(log, lease, text) == "written"
    await log.change_status(cid, "human", reason=text, actor=text, agent="anna")
    await log.append_note(cid, text=text, author="anna", client_message_id="n1")
    await log.give_rating(cid, score=5, comment=text)
    message, reply, status, note, rating = await events_of(log, cid)
    assert message.data["text"] == reply.data["text"] == note.data["text"] == text
    assert status.data["reason"] == status.data["actor"] == rating.data["comment"] == text


@pytest.mark.parametrize("finish", ["stopped", "handoff"])
@pytest.mark.parametrize("text", TRICKY)
async def test_text_that_the_store_puts_together_is_the_same(
    log: ConversationLog, text: str, finish: str
) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, text)
    if finish == "stopped":
        assert await log.stop_reply(cid, lease.reply_id)
    else:
        await log.change_status(cid, "waiting", reason="asked", actor="visitor")
    reply = (await events_of(log, cid))[1]
    assert (reply.data["text"], reply.data["finish_reason"]) == (text, finish)


async def test_half_a_character_is_refused(log: ConversationLog) -> None:
    if type(log).__name__ == "MemoryLog":
        return  # nothing is encoded there
    cid = await begin(log)
    with pytest.raises(InputError):
        await ask(log, cid, "broken \ud83d")
    assert await events_of(log, cid) == []


async def test_an_event_of_a_reply_has_all_its_parts(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Hi")
    usage = {"prompt_tokens": 9007199254740993, "cached_tokens": 0, "completion_tokens": 1}
    await log.complete_reply(
        lease,
        text="Hi",
        finish_reason="length",
        version="v-1",
        usage=usage,
        confidence=0.12345678901234566,
        seconds=1.23456,
    )
    assert (await events_of(log, cid))[1].data == {
        "reply_id": lease.reply_id,
        "text": "Hi",
        "finish_reason": "length",
        "version": "v-1",
        "upto": 1,
        "usage": usage,
        "confidence": 0.12345678901234566,
        "seconds": 1.235,
    }


async def test_a_message_is_appended_once_per_client_id(log: ConversationLog) -> None:
    cid = await begin(log)

    async def send(text: str) -> Any:
        return await log.append_message(
            cid, role="visitor", text=text, client_message_id="same", author=VISITOR
        )

    results = await asyncio.gather(*(send("hello") for _ in range(5)))
    assert sorted(result.duplicate for result in results) == [False, True, True, True, True]
    assert {result.offset for result in results} == {1}
    assert (await send("other text")).duplicate
    assert await shape(log, cid) == ["visitor: hello"]
    await take(log)
    await no_job(log)  # and one reply


async def test_client_ids_of_roles_are_kept_apart(log: ConversationLog) -> None:
    cid = await begin(log)
    await log.append_message(cid, role="visitor", text="one", client_message_id="1", author=VISITOR)
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    said = await log.append_message(
        cid, role="agent", text="two", client_message_id="1", author="anna"
    )
    noted = await log.append_note(cid, text="three", author="anna", client_message_id="1")
    assert not said.duplicate
    assert not noted.duplicate
    assert (await log.append_note(cid, text="3", author="anna", client_message_id="1")).duplicate
    facts = {"plan": "gold"}
    told = [
        await log.describe_visitor(cid, facts=facts, source="page", client_message_id="1")
        for _ in range(2)
    ]
    assert [accepted.duplicate for accepted in told] == [False, True]
    assert (await log.read(cid))[-1].data["facts"] == facts


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
async def test_a_reader_gets_exactly_what_it_lacks(log: ConversationLog, offset: int) -> None:
    cid = await begin(log)
    for text in "abc":
        await ask(log, cid, text)
    head = await log.head(cid)
    assert head is not None
    catchup = await log.catch_up(cid, head.epoch, offset)
    assert catchup.recovered
    assert [event.offset for event in catchup.events] == list(range(offset + 1, 4))


@pytest.mark.parametrize(
    ("epoch", "offset"), [(None, None), ("another", 1), ("same", 4), ("same", None), ("same", -1)]
)
async def test_a_reader_of_another_log_gets_everything(
    log: ConversationLog, epoch: str | None, offset: int | None
) -> None:
    cid = await begin(log)
    for text in "abc":
        await ask(log, cid, text)
    head = await log.head(cid)
    assert head is not None
    catchup = await log.catch_up(cid, head.epoch if epoch == "same" else epoch, offset)
    assert not catchup.recovered
    assert [event.offset for event in catchup.events] == [1, 2, 3]
    assert [event.offset for event in await log.read(cid, after=1)] == [2, 3]


async def test_one_reply_answers_all_that_came_before_it_was_taken(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid, "one")
    await ask(log, cid, "two")
    lease = await take(log)
    assert (lease.upto, lease.attempt, lease.streamed) == (2, 1, "")
    await log.start_reply(lease, "v-1")
    await complete(log, lease, "")
    await no_job(log)


async def test_the_live_reply_is_seen_as_it_grows_and_goes_at_the_end(
    log: ConversationLog,
) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await take(log)
    assert await live_of(log, cid) is None  # not announced yet
    await log.start_reply(lease, "v-1")
    live = await live_of(log, cid)
    assert live is not None
    assert (live.reply_id, live.version, live.text) == (lease.reply_id, "v-1", "")
    await log.append_delta(lease, 0, "Good ")
    await log.append_delta(lease, 5, "day")
    live = await live_of(log, cid)
    assert live is not None
    assert live.text == "Good day"
    assert await complete(log, lease, "Good day") == "written"
    assert await live_of(log, cid) is None


async def test_a_delta_out_of_place_is_refused(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "🙂🙂")
    for from_char in (0, 1, 3, 8):
        with pytest.raises(Conflict) as caught:
            await log.append_delta(lease, from_char, "x")
        assert caught.value.data["length"] == 2
    live = await live_of(log, cid)
    assert live is not None
    assert live.text == "🙂🙂"


async def test_a_delta_sent_again_is_written_once(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Good ")
    assert await log.append_delta(lease, 5, "day") == "written"
    assert await log.append_delta(lease, 5, "day") == "written"
    live = await live_of(log, cid)
    assert live is not None
    assert live.text == "Good day"


async def test_a_delta_before_the_announcement_is_refused(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await take(log)
    with pytest.raises(Conflict):
        await log.append_delta(lease, 0, "x")
    assert cid == lease.conversation_id


@pytest.mark.parametrize("text", ["Good", "Good day!", "", "good day"])
async def test_a_completed_text_must_be_what_was_streamed(log: ConversationLog, text: str) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Good day")
    with pytest.raises(Conflict):
        await complete(log, lease, text)
    with pytest.raises(Conflict):
        await complete(log, lease, "Good day", version="v-2")
    assert await complete(log, lease, "Good day") == "written"
    assert await complete(log, lease, "Good day") == "written"  # its answer was lost
    assert await shape(log, cid) == ["visitor: hello", "bot (end): Good day"]


@pytest.mark.parametrize("finish", ["stopped", "handoff"])
async def test_a_worker_cannot_end_a_reply_as_the_store_does(
    log: ConversationLog, finish: Any
) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log)
    with pytest.raises(InputError):
        await log.complete_reply(
            lease,
            text="So far",
            finish_reason=finish,
            version="v-1",
            usage={},
            confidence=None,
            seconds=0,
        )


async def test_a_released_job_is_taken_at_once_and_goes_on(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half ")
    await log.release(lease)
    assert await log.append_delta(lease, 5, "x") == "lost"
    second = await take(log, 0.1)
    assert (second.reply_id, second.streamed, second.attempt) == (lease.reply_id, "Half ", 1)
    assert second.fence > lease.fence
    assert await log.start_reply(second, "v-1") == "written"
    with pytest.raises(Conflict):
        await log.start_reply(second, "v-2")
    await log.append_delta(second, 5, "done")
    assert await complete(log, second, "Half done") == "written"


async def test_ratings_and_notes_do_not_move_the_turn(log: ConversationLog) -> None:
    cid = await begin(log)
    await log.give_rating(cid, score=4, comment="ok")
    await log.append_note(cid, text="a note", author="anna", client_message_id="n")
    await no_job(log)
    assert await shape(log, cid) == ["rated 4", "note: a note"]
    for score in (0, 6):
        with pytest.raises(InputError):
            await log.give_rating(cid, score=score, comment="")


async def test_only_the_agent_who_holds_it_writes(log: ConversationLog) -> None:
    cid = await begin(log)

    async def say(author: str) -> None:
        await log.append_message(
            cid, role="agent", text="hi", client_message_id=f"by {author}", author=author
        )

    with pytest.raises(Conflict):
        await say("anna")
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    await say("anna")
    with pytest.raises(Conflict):
        await say("ben")
    await log.change_status(cid, "closed", reason="solved", actor="anna")
    with pytest.raises(Conflict):
        await log.append_message(
            cid, role="agent", text="late", client_message_id="late", author="anna"
        )


async def test_a_claimed_conversation_cannot_be_claimed_by_another(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    results = await asyncio.gather(
        *(
            log.change_status(cid, "human", reason="claimed", actor=name, agent=name)
            for name in ("anna", "ben", "cleo")
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Conflict) for result in results) == 2
    head = await log.head(cid)
    assert head is not None
    offset = head.offset
    again = await log.change_status(
        cid, "human", reason="claimed", actor=head.agent, agent=head.agent
    )
    assert again.offset == offset  # a click sent twice


async def test_back_with_the_bot_it_answers_what_nobody_answered(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    await no_job(log)
    await ask(log, cid, "still there?")
    await no_job(log)  # the bot is silent while a person holds it
    await log.change_status(cid, "bot", reason="released", actor="anna")
    assert (await take(log)).upto == 4


async def test_back_with_the_bot_it_is_silent_when_an_agent_answered(log: ConversationLog) -> None:
    cid = await begin(log)
    await ask(log, cid)
    await log.change_status(cid, "human", reason="claimed", actor="anna", agent="anna")
    await log.append_message(cid, role="agent", text="done", client_message_id="a1", author="anna")
    await log.change_status(cid, "bot", reason="released", actor="anna")
    await no_job(log)


async def test_a_closed_conversation_reopens_with_the_bot(log: ConversationLog) -> None:
    cid = await begin(log)
    await log.change_status(cid, "closed", reason="solved", actor="anna")
    assert await log.open_conversations() == []
    await ask(log, cid, "one more thing")
    assert await shape(log, cid) == [
        "bot -> closed (solved)",
        "closed -> bot (visitor_wrote)",
        "visitor: one more thing",
    ]
    assert [head.conversation_id for head in await log.open_conversations()] == [cid]
    assert (await take(log)).upto == 3


async def test_the_desk_list(log: ConversationLog) -> None:
    for number, site in enumerate(["demo", "shop", "demo"]):
        cid = ConversationId(f"c{number}")
        await log.create(cid, site=site, visitor=VISITOR)
        await ask(log, cid)
        await asyncio.sleep(0.003)  # activity is kept in milliseconds
    pinned = ConversationId("p1")
    await log.create(pinned, site="demo", visitor=VISITOR, kind="playground", pinned_version="v-9")
    await ask(log, pinned)
    ids = [head.conversation_id for head in await log.open_conversations()]
    assert ids == ["c2", "c1", "c0"]
    ids = [head.conversation_id for head in await log.open_conversations(["demo"])]
    assert ids == ["c2", "c0"]
    assert [head.conversation_id for head in await log.open_conversations(["demo"], 1)] == ["c2"]
    assert [head.conversation_id for head in await log.open_conversations(["shop"], 1)] == ["c1"]
    assert await log.open_conversations([]) == []


async def test_changes_name_what_changed(log: ConversationLog) -> None:
    cid = await begin(log)
    changes = log.changes()
    assert await anext(changes) is None  # subscribed: look at everything once
    await ask(log, cid)
    assert await anext(changes) == cid
    await answer(log)
    assert await anext(changes) == cid
    await changes.aclose()  # type: ignore[attr-defined]
    with pytest.raises(StopAsyncIteration):
        await anext(changes)


async def test_unrecorded_until_marked(log: ConversationLog) -> None:
    cid = await begin(log)
    assert await log.unrecorded() == []
    await ask(log, cid)
    await ask(log, cid)
    assert await log.unrecorded() == [(cid, 2)]
    head = await log.head(cid)
    assert head is not None
    await log.mark_recorded(cid, 2, "another epoch")
    await log.mark_recorded(cid, 1, head.epoch)
    assert await log.unrecorded() == [(cid, 2)]
    await log.mark_recorded(cid, 2, head.epoch)
    assert await log.unrecorded() == []
    head = await log.head(cid)
    assert head is not None
    assert head.recorded == 2


async def test_playgrounds_are_not_recorded(log: ConversationLog) -> None:
    cid = ConversationId("p1")
    head = await log.create(
        cid, site="demo", visitor=VISITOR, kind="playground", pinned_version="v-9"
    )
    assert (head.kind, head.pinned_version) == ("playground", "v-9")
    await ask(log, cid)
    lease = await streaming(log)
    await log.fail_reply(lease, version="v-1", reason="refused")
    assert await shape(log, cid) == ["visitor: hello", "failed (refused): So far"]
    assert await log.unrecorded() == []
    await ask(log, cid, "again")  # nobody waits for people here
    await take(log)


async def test_a_trace_goes_with_the_reply(log: ConversationLog) -> None:
    cid = await begin(log)
    for number, trace in enumerate(("00-one", "00-two")):
        await log.append_message(
            cid,
            role="visitor",
            text="hi",
            client_message_id=f"t-{number}",
            author=VISITOR,
            trace=trace,
        )
    lease = await take(log)
    assert lease.trace == "00-two"
    await log.release(lease)
    assert (await take(log)).trace == "00-two"


async def test_the_queue_counts_what_waits_and_what_is_written(log: ConversationLog) -> None:
    one, two = await begin(log, "c1"), await begin(log, "c2")
    assert await log.queue_length() == 0
    await ask(log, one)
    await ask(log, two)
    await ask(log, two)  # one reply answers both
    lease = await streaming(log, "Hi")
    assert await log.queue_length() == 2
    assert await complete(log, lease, "Hi") == "written"
    assert await log.queue_length() == 1


async def test_a_reply_that_nobody_takes_goes_to_people(log: ConversationLog) -> None:
    written, waiting = await begin(log, "c1"), await begin(log, "c2")
    await ask(log, written)
    lease = await streaming(log, "Hi")
    await ask(log, waiting)
    assert await log.give_up_waiting(3600) == 0
    while await shape(log, waiting) == ["visitor: hello"]:
        await log.renew(lease)  # its worker is alive
        await log.give_up_waiting(1.0)
    assert await shape(log, waiting) == [
        "visitor: hello",
        "failed (busy): ",
        "bot -> waiting (reply_failed)",
    ]
    await no_job(log)
    assert await complete(log, lease, "Hi") == "written"
    assert await log.queue_length() == 0


async def test_a_reply_whose_worker_is_silent_goes_to_people_too(log: ConversationLog) -> None:
    """No other worker is there that could take it over."""
    cid = await begin(log)
    await ask(log, cid)
    lease = await streaming(log, "Half a rep")
    while not await log.give_up_waiting(0.3):
        pass
    assert (await shape(log, cid))[1] == "failed (busy): Half a rep"
    assert await log.append_delta(lease, 10, "ly") == "lost"


async def test_taking_a_job_waits_for_one(log: ConversationLog) -> None:
    cid = await begin(log)
    waiting = asyncio.create_task(log.take_job("w", 5.0))
    await asyncio.sleep(0)
    await ask(log, cid)
    lease = await waiting
    assert lease is not None
    assert lease.conversation_id == cid
    assert lease.waited < 5
