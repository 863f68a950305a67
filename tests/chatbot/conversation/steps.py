"""Short words for what tests do with a log again and again."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

from chatbot.conversation.events import (
    ConversationId,
    Event,
    Lease,
    LiveReply,
    ReplyId,
    VisitorId,
)
from chatbot.conversation.interface import ConversationLog, DeltaOutcome

VISITOR = VisitorId("v1")
_ids = itertools.count(1)


async def begin(log: ConversationLog, conversation_id: str = "c1") -> ConversationId:
    cid = ConversationId(conversation_id)
    await log.create(cid, site="demo", visitor=VISITOR)
    return cid


async def ask(log: ConversationLog, cid: ConversationId, text: str = "hello") -> int:
    """A visitor's message; its offset."""
    accepted = await log.append_message(
        cid, role="visitor", text=text, client_message_id=f"m{next(_ids)}", author=VISITOR
    )
    assert not accepted.duplicate
    return accepted.offset


async def take(log: ConversationLog, seconds: float = 2.0) -> Lease:
    lease = await log.take_job("w", seconds)
    assert lease is not None, "no job came"
    return lease


async def no_job(log: ConversationLog) -> None:
    assert await log.take_job("w", 0.05) is None


async def streaming(log: ConversationLog, text: str = "So far") -> Lease:
    """A taken reply that has streamed ``text``."""
    lease = await take(log)
    assert await log.start_reply(lease, "v-1") == "written"
    assert await log.append_delta(lease, 0, text) == "written"
    return lease


async def complete(
    log: ConversationLog, lease: Lease, text: str, version: str = "v-1"
) -> DeltaOutcome:
    return await log.complete_reply(
        lease,
        text=text,
        finish_reason="end",
        version=version,
        usage={"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": 2},
        confidence=0.75,
        seconds=0.5,
    )


async def answer(log: ConversationLog, text: str = "Hi there") -> Lease:
    """Take the next job and complete it."""
    lease = await streaming(log, text)
    assert await complete(log, lease, text) == "written"
    return lease


async def events_of(log: ConversationLog, cid: ConversationId) -> list[Event]:
    events = await log.read(cid)
    assert [event.offset for event in events] == list(range(1, len(events) + 1))
    assert [event.at for event in events] == sorted(event.at for event in events)
    return events


async def shape(log: ConversationLog, cid: ConversationId) -> list[str]:
    """The log in one line per event."""
    return [_line(event) for event in await events_of(log, cid)]


def _line(event: Event) -> str:
    data = event.data
    match event.type:
        case "message.created":
            return f"{data['role']}: {data['text']}"
        case "reply.completed":
            return f"bot ({data['finish_reason']}): {data['text']}"
        case "reply.failed":
            return f"failed ({data['reason']}): {data['text']}"
        case "status.changed":
            return f"{data['previous']} -> {data['status']} ({data['reason']})"
        case "rating.given":
            return f"rated {data['score']}"
    return f"note: {data['text']}"


async def live_of(log: ConversationLog, cid: ConversationId) -> LiveReply | None:
    return (await log.catch_up(cid, None, None)).live


async def running_reply(log: ConversationLog, cid: ConversationId) -> ReplyId:
    live = await live_of(log, cid)
    assert live is not None
    return live.reply_id


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)
