"""Conversations: the list from the record, one of them from its log."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from chatbot.conversation.archive import ConversationFilter, Found
from chatbot.conversation.events import ConversationId, Event, Status
from chatbot.errors import NotFound, StoreUnavailable
from chatbot.record.tables import Conversation, Review
from chatbot.server.admin.common import Agent, Answer, Cursor, Limit, Stores
from chatbot.services import Services

router = APIRouter(tags=["conversations"])


class ConversationItem(Answer):
    """``score``: the visitor's rating. ``preview``: how the visitor began."""

    id: str
    site: str
    status: str
    started_at: int
    updated_at: int
    messages: int
    versions: list[str]
    score: int | None
    reviewed: bool
    excluded: bool
    preview: str


class ConversationPage(Answer):
    items: list[ConversationItem]
    next_cursor: str | None


class ConversationHead(Answer):
    id: str
    site: str
    visitor: str
    status: str
    agent: str
    started_at: int
    updated_at: int
    score: int | None
    excluded: bool
    exclusion_reason: str


class ReviewAnswer(Answer):
    offset: int
    verdict: str | None
    correction: str | None
    comment: str
    reviewer: str
    updated_at: int


class ConversationDetail(Answer):
    """``events`` as on the wire: type, offset, at, and what belongs to the type."""

    conversation: ConversationHead
    events: list[dict[str, Any]] = Field(description="offset, type, at and the type's own fields")
    reviews: list[ReviewAnswer]


@router.get("/conversations")
def list_conversations(
    _: Agent,
    stores: Stores,
    status: Status | None = None,
    site: Annotated[str, Query(max_length=64)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    version: Annotated[str, Query(max_length=64)] = "",
    rating: Annotated[int | None, Query(ge=1, le=5)] = None,
    reviewed: bool | None = None,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> ConversationPage:
    """Last activity first; ``q`` is looked for in everything that was written. A message is here
    a moment after it was sent, when it is recorded."""
    page = stores.archive.search(
        ConversationFilter(
            status=status or "",
            site=site,
            q=q,
            version=version,
            rating=rating,
            reviewed=reviewed,
            cursor=cursor,
            limit=limit,
        )
    )
    return ConversationPage(
        items=[_item(found) for found in page.items], next_cursor=page.next_cursor or None
    )


@router.get("/conversations/{conversation_id}")
async def one_conversation(_: Agent, stores: Stores, conversation_id: str) -> ConversationDetail:
    """Everything in it, up to this moment."""
    name = ConversationId(conversation_id)
    head, events = await read_conversation(stores, name)
    row, reviews = await asyncio.to_thread(_recorded, stores, name)
    if row is not None:
        head |= {"excluded": row.excluded, "exclusion_reason": row.exclusion_reason}
    return ConversationDetail(
        conversation=ConversationHead(**head),
        events=[event.to_wire() for event in events],
        reviews=[ReviewAnswer.model_validate(review) for review in reviews],
    )


async def read_conversation(
    stores: Services, conversation_id: ConversationId
) -> tuple[dict[str, Any], list[Event]]:
    """(fields of ConversationHead, events) from the log, which is ahead of the record; from the
    record while Redis is away.

    Raises:
        NotFound: neither has it, or it is a playground.
    """
    try:
        catchup = await stores.log.catch_up(conversation_id, None, None)
    except StoreUnavailable:
        return await asyncio.to_thread(_from_record, stores, conversation_id)
    head = catchup.head
    if head.kind != "chat":
        raise NotFound(f"there is no conversation {conversation_id}")
    fields = asdict(head)
    fields |= {"id": conversation_id, "started_at": head.created_at}
    return _head_fields(fields, catchup.events), catchup.events


def _from_record(
    stores: Services, conversation_id: ConversationId
) -> tuple[dict[str, Any], list[Event]]:
    found = stores.archive.load(conversation_id)
    if found is None:
        raise NotFound(f"there is no conversation {conversation_id}")
    row, events = found
    names = ("id", "site", "visitor", "status", "started_at", "updated_at")
    fields = {name: getattr(row, name) for name in names}
    return _head_fields({**fields, "agent": _holder(events)}, events), events


def _head_fields(fields: dict[str, Any], events: list[Event]) -> dict[str, Any]:
    ratings = [event.data["score"] for event in events if event.type == "rating.given"]
    extra = {"score": ratings[-1] if ratings else None, "excluded": False, "exclusion_reason": ""}
    wanted = ConversationHead.model_fields
    return {name: value for name, value in (fields | extra).items() if name in wanted}


def _holder(events: list[Event]) -> str:
    moves = [event for event in events if event.type == "status.changed"]
    return str(moves[-1].data.get("agent", "")) if moves else ""


def _recorded(
    stores: Services, conversation_id: ConversationId
) -> tuple[Conversation | None, list[Review]]:
    with stores.database.session() as session:
        row = session.get(Conversation, conversation_id)
        reviews = session.query(Review).filter_by(conversation_id=conversation_id)
        return row, reviews.order_by(Review.offset).all()


def _item(found: Found) -> ConversationItem:
    row = found.conversation
    names = ConversationItem.model_fields.keys() - {"versions", "reviewed"}
    fields = {name: getattr(row, name) for name in names}
    return ConversationItem(**fields, versions=found.versions, reviewed=found.reviewed)
