"""Who did what, when and why."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select

from chatbot.errors import InputError
from chatbot.record.tables import Audit
from chatbot.server.admin.common import Admin, Answer, Cursor, Limit, Stores

router = APIRouter(tags=["audit"])


class AuditItem(Answer):
    id: int
    actor: str
    action: str
    subject: str
    reason: str
    data: dict[str, Any]
    at: int


class AuditPage(Answer):
    items: list[AuditItem]
    next_cursor: str | None


@router.get("/audit")
def audit(_: Admin, stores: Stores, cursor: Cursor = "", limit: Limit = 50) -> AuditPage:
    """The newest first."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit + 1)
    if cursor:
        if not cursor.isdecimal() or len(cursor) > 18:
            raise InputError("cursor: not one that a page gave")
        query = query.where(Audit.id < int(cursor))
    with stores.database.session() as session:
        rows = session.scalars(query).all()
    return AuditPage(
        items=[AuditItem.model_validate(row) for row in rows[:limit]],
        next_cursor=str(rows[limit - 1].id) if len(rows) > limit else None,
    )
