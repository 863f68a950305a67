"""The console's first page."""

from fastapi import APIRouter
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from chatbot.errors import NotFound
from chatbot.record.tables import Conversation, Review
from chatbot.server.admin.common import Agent, Answer, Stores
from chatbot.server.admin.runs import RunAnswer
from chatbot.services import Services

router = APIRouter(tags=["overview"])


class Overview(Answer):
    """``open``: conversations that are not closed. ``reviewed``: conversations with a review.
    ``corrections``: replies that staff wrote anew."""

    conversations: int
    open: int
    waiting: int
    reviewed: int
    corrections: int
    live_version: str | None
    active_run: RunAnswer | None


@router.get("/overview")
def overview(_: Agent, stores: Stores) -> Overview:
    active = stores.runs.active()
    with stores.database.session() as session:
        status = dict(_by_status(session))
        reviewed = session.scalar(select(func.count(Review.conversation_id.distinct())))
        corrections = session.scalar(
            select(func.count()).select_from(Review).where(Review.correction.is_not(None))
        )
    total = sum(status.values())
    return Overview(
        conversations=total,
        open=total - status.get("closed", 0),
        waiting=status.get("waiting", 0),
        reviewed=reviewed or 0,
        corrections=corrections or 0,
        live_version=_live(stores),
        active_run=None if active is None else RunAnswer.model_validate(active),
    )


def _by_status(session: Session) -> list[tuple[str, int]]:
    query = select(Conversation.status, func.count()).group_by(Conversation.status)
    return [(status, count) for status, count in session.execute(query)]


def _live(stores: Services) -> str | None:
    try:
        return stores.versions.live().id
    except NotFound:
        return None
