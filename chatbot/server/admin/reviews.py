"""What staff say of the bot's replies, and which conversations stay out of training."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import Field

from chatbot.conversation.events import ConversationId
from chatbot.errors import NotFound, RequestRefused, StoreUnavailable
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.tables import Conversation, Review
from chatbot.server.admin.common import Body, Reviewer, Stores
from chatbot.server.admin.conversations import ConversationHead, ReviewAnswer, read_conversation
from chatbot.services import Services

router = APIRouter(tags=["reviews"])
Offset = Annotated[int, Path(ge=1, le=2**31 - 1)]


class ReviewBody(Body):
    """``correction``: what the reply should have been. Nothing of all takes the review back."""

    verdict: Literal["good", "bad"] | None = None
    correction: str | None = Field(None, max_length=20000)
    comment: str = Field("", max_length=5000)


class ExclusionBody(Body):
    excluded: bool
    reason: str = Field("", max_length=1000)


@router.put("/conversations/{conversation_id}/reviews/{offset}")
async def put_review(
    user: Reviewer, stores: Stores, conversation_id: str, offset: Offset, body: ReviewBody
) -> ReviewAnswer:
    """Review the bot's reply at ``offset``, in place of what was said of it before."""
    name = ConversationId(conversation_id)
    _, events = await read_conversation(stores, name)
    event = next((event for event in events if event.offset == offset), None)
    if event is None:
        raise NotFound(f"conversation {conversation_id} has nothing at offset {offset}")
    if event.type != "reply.completed":
        raise RequestRefused(
            f"offset {offset} is a {event.type}: only the bot's replies are reviewed"
        )
    await _have_recorded(stores, name)
    return await asyncio.to_thread(_save_review, stores, user.username, name, offset, body)


@router.put("/conversations/{conversation_id}/exclusion")
async def put_exclusion(
    user: Reviewer, stores: Stores, conversation_id: str, body: ExclusionBody
) -> ConversationHead:
    """Keep the whole conversation out of training, or let it in again."""
    name = ConversationId(conversation_id)
    head, _ = await read_conversation(stores, name)
    await _have_recorded(stores, name)
    await asyncio.to_thread(_save_exclusion, stores, user.username, name, body)
    head |= {"excluded": body.excluded, "exclusion_reason": body.reason}
    return ConversationHead(**head)


async def _have_recorded(stores: Services, name: ConversationId) -> None:
    """A review refers to the record, which may lag behind the log for a moment: catch up here.
    Storing the same events twice changes nothing."""
    if await asyncio.to_thread(stores.archive.recorded, name) is None:
        catchup = await stores.log.catch_up(name, None, None)
        await asyncio.to_thread(stores.archive.store, catchup.head, catchup.events)


def _save_review(
    stores: Services, user: str, name: ConversationId, offset: int, body: ReviewBody
) -> ReviewAnswer:
    correction = (body.correction or "").strip() or None
    row = Review(
        conversation_id=name,
        offset=offset,
        verdict=body.verdict,
        correction=correction,
        comment=body.comment,
        reviewer=user,
        updated_at=now_ms(),
    )
    answer = ReviewAnswer.model_validate(row)
    with stores.database.exclusive_session(f"review:{name}") as session:
        if body.verdict or correction or body.comment:
            session.merge(row)
        elif (old := session.get(Review, (name, offset))) is not None:
            session.delete(old)
        data = {"offset": offset, "verdict": body.verdict, "corrected": correction is not None}
        record(session, user, "review", name, data=data)
    return answer


def _save_exclusion(stores: Services, user: str, name: ConversationId, body: ExclusionBody) -> None:
    with stores.database.session() as session:
        row = session.get(Conversation, name)
        if row is None:
            raise StoreUnavailable(f"conversation {name} is not recorded yet: try again")
        row.excluded = body.excluded
        row.exclusion_reason = body.reason
        action = "conversation.exclude" if body.excluded else "conversation.include"
        record(session, user, action, name, reason=body.reason)
