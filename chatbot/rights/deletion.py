"""Deleting conversations everywhere, for good, one step at a time.

Mark, erase the log, delete the rows. Each step may be repeated, by any process, after any crash:
what is marked and not done is ``pending`` and is taken up again (``keeper.py``). Why nothing
comes back: docs/decisions/0014-data-rights.md.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from chatbot.conversation.archive import conversation_lock
from chatbot.conversation.events import ConversationId
from chatbot.conversation.interface import ConversationLog
from chatbot.record.database import Database
from chatbot.record.tables import (
    Base,
    Conversation,
    ErasedConversation,
    EventRow,
    ExportedConversation,
    Review,
)

# every other table with a conversation_id holds something of the conversation
KEPT = (ErasedConversation.__tablename__, ExportedConversation.__tablename__)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What one conversation was. ``kept``: something was said in it after all, it stays."""

    log: bool = False
    events: int = 0
    reviews: int = 0
    kept: bool = False


def mark(
    session: Session,
    names: Iterable[str],
    erased_at: int,
    *,
    erasure_id: str = "",
    only_before: int | None = None,
) -> None:
    """Mark conversations as being deleted: from now on the record takes no copy of them."""
    for name in names:
        session.merge(
            ErasedConversation(
                conversation_id=name,
                erased_at=erased_at,
                only_before=only_before,
                pending=True,
                erasure_id=erasure_id,
            )
        )


def pending(database: Database, before: int, limit: int = 100) -> list[str]:
    """Conversations that were marked before a moment (Unix ms) and are not deleted yet."""
    wanted = (
        select(ErasedConversation.conversation_id)
        .where(ErasedConversation.pending, ErasedConversation.erased_at <= before)
        .order_by(ErasedConversation.erased_at)
        .limit(limit)
    )
    with database.session() as session:
        return list(session.scalars(wanted))


async def carry_out(database: Database, log: ConversationLog, name: str) -> Deleted:
    """Do the rest for a marked conversation; again, it does nothing.

    Raises:
        StoreUnavailable, StorageFull: do it again later.
    """
    mark_row = await asyncio.to_thread(_marked, database, name)
    if mark_row is None:
        return Deleted()
    was_there = await log.erase(ConversationId(name), mark_row.erased_at, mark_row.only_before)
    if was_there is None:
        await asyncio.to_thread(_unmark, database, name)
        return Deleted(kept=True)
    events, reviews = await asyncio.to_thread(_delete_rows, database, name, mark_row.erased_at)
    return Deleted(was_there, events, reviews)


def _marked(database: Database, name: str) -> ErasedConversation | None:
    with database.session() as session:
        row = session.get(ErasedConversation, name)
        return row if row is not None and row.pending else None


def _unmark(database: Database, name: str) -> None:
    with database.exclusive_session(conversation_lock(name)) as session:
        row = session.get(ErasedConversation, name)
        if row is not None and row.pending and row.only_before is not None:
            session.delete(row)


def _delete_rows(database: Database, name: str, erased_at: int) -> tuple[int, int]:
    """(events, reviews) that were deleted. Marked anew meanwhile: the log comes first again."""
    with database.exclusive_session(conversation_lock(name)) as session:
        row = session.get(ErasedConversation, name)
        if row is None or not row.pending or row.erased_at != erased_at:
            return 0, 0  # another process was faster
        row.pending = False
        conversation = session.get(Conversation, name)
        if conversation is None or conversation.started_at > erased_at:
            return 0, 0  # not recorded, or another one that began since
        events = _count(session, EventRow, name)
        reviews = _count(session, Review, name)
        for table in Base.metadata.sorted_tables[::-1]:
            if "conversation_id" in table.c and table.name not in KEPT:
                session.execute(delete(table).where(table.c.conversation_id == name))
        session.execute(delete(Conversation).where(Conversation.id == name))
        return events, reviews


def _count(session: Session, table: type[EventRow] | type[Review], name: str) -> int:
    wanted = select(func.count()).select_from(table).where(table.conversation_id == name)
    return session.execute(wanted).scalar_one()


async def repeat_recent(database: Database, log: ConversationLog, since: int) -> int:
    """After a restart of the store, which may have lost its last writes: erase again what was
    erased since a moment (Unix ms). How many logs had come back."""

    def wanted() -> list[tuple[str, int]]:
        query = select(ErasedConversation.conversation_id, ErasedConversation.erased_at).where(
            ~ErasedConversation.pending, ErasedConversation.erased_at >= since
        )
        with database.session() as session:
            return [(name, at) for name, at in session.execute(query)]

    back = 0
    for name, at in await asyncio.to_thread(wanted):
        back += bool(await log.erase(ConversationId(name), at))
    return back
