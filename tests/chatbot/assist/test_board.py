"""Where desks and workers meet over drafts."""

from redis.asyncio import Redis

from chatbot.assist.board import ASSIST_CHANNEL, MOST_JOBS, AssistBoard, AssistJob, DraftSet
from chatbot.assist.drafts import Draft
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.log import RedisLog

CID = ConversationId("c-1")


async def test_a_question_is_asked_once_and_the_newest_is_taken_first(redis: Redis) -> None:
    board = AssistBoard(redis)
    assert await board.ask(AssistJob(CID, 3))
    assert not await board.ask(AssistJob(CID, 3))
    assert await board.ask(AssistJob(CID, 5))
    assert await board.take(1) == AssistJob(CID, 5)
    assert await board.take(1) == AssistJob(CID, 3)
    assert await board.take(0.05) is None


async def test_what_nobody_drafts_for_does_not_pile_up(redis: Redis) -> None:
    board = AssistBoard(redis)
    for number in range(MOST_JOBS + 5):
        await board.ask(AssistJob(CID, number))
    assert await board.take(1) == AssistJob(CID, MOST_JOBS + 4)
    assert await redis.llen("fd:assist:jobs") == MOST_JOBS - 1  # type: ignore[misc]


async def test_a_set_comes_back_as_it_was_put_and_wakes_the_desks(redis: Redis) -> None:
    board = AssistBoard(redis)
    log = RedisLog(redis, None, 30, 3)
    await log.create(CID, site="demo", visitor=VisitorId("v-1"))
    assert await board.get(CID) is None
    draft = Draft("p0", 'Zürich "🙂"', "past", 0.25, "c-0")
    whole = DraftSet("s1", 7, "v1", (draft,), complete=True)
    async with redis.pubsub(ignore_subscribe_messages=True) as channel:
        await channel.subscribe(ASSIST_CHANNEL)
        await channel.get_message(timeout=10)
        await board.put(CID, whole)
        message = await channel.get_message(timeout=10)
    assert message is not None
    assert message["data"] == CID
    assert await board.get(CID) == whole
    assert whole.draft("p0") == draft
    assert whole.draft("p1") is None
