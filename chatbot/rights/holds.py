"""Legal holds: while one is in force nothing of that person is deleted, by nobody and no rule."""

import secrets
from collections.abc import Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from chatbot.errors import Conflict, Held, NotFound, RequestRefused
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, ErasedConversation, Erasure, Hold
from chatbot.rights.people import LOCK, RUNNING, Person, hold_query


def place_hold(database: Database, person: Person, actor: str, reason: str) -> tuple[Hold, bool]:
    """(the hold in force, whether it is new).

    Raises:
        RequestRefused: without a reason.
        Conflict: the person's conversations are being deleted at this moment.
    """
    _require(reason, "a legal hold needs a reason: say which matter it is for")
    with database.exclusive_session(LOCK) as session:
        found: Hold | None = session.scalar(hold_query(person))
        if found is not None:
            return found, False
        if _being_deleted(session, person):
            raise Conflict(
                "conversations of this person are being deleted at this moment: look again in a "
                "minute; a hold then covers what is left"
            )
        hold = Hold(
            id=f"hold-{secrets.token_hex(6)}",
            site=person.site,
            visitor=person.visitor,
            reason=reason.strip(),
            placed_by=actor,
            placed_at=now_ms(),
            lifted_by="",
            lift_reason="",
        )
        session.add(hold)
        record(session, actor, "hold.place", person.visitor, reason=reason, data={"hold": hold.id})
        return hold, True


def lift_hold(database: Database, hold_id: str, actor: str, reason: str) -> Hold:
    """End a hold; one that has ended already stays as it ended.

    Raises:
        NotFound
        RequestRefused: without a reason.
    """
    _require(reason, "say why the hold is lifted")
    with database.exclusive_session(LOCK) as session:
        hold = session.get(Hold, hold_id)
        if hold is None:
            raise NotFound(f"there is no hold {hold_id}")
        if hold.lifted_at is None:
            hold.lifted_at, hold.lifted_by, hold.lift_reason = now_ms(), actor, reason.strip()
            record(session, actor, "hold.lift", hold.visitor, reason=reason, data={"hold": hold.id})
        return hold


def list_holds(database: Database) -> Sequence[Hold]:
    """Those in force first, then the newest."""
    with database.session() as session:
        rows = session.scalars(select(Hold).order_by(Hold.placed_at.desc())).all()
    return sorted(rows, key=lambda hold: hold.lifted_at is not None)


def require_no_hold(session: Session, person: Person) -> None:
    """Raises Held, with the hold's reason."""
    hold: Hold | None = session.scalar(hold_query(person))
    if hold is not None:
        raise Held(
            f"a legal hold forbids it: {hold.reason} (placed by {hold.placed_by}; lift "
            f"{hold.id} first)",
            hold_id=hold.id,
        )


def _being_deleted(session: Session, person: Person) -> bool:
    erasure = exists().where(
        Erasure.site == person.site, Erasure.visitor == person.visitor, Erasure.state == RUNNING
    )
    rule = exists().where(
        Conversation.site == person.site,
        Conversation.visitor == person.visitor,
        ErasedConversation.conversation_id == Conversation.id,
        ErasedConversation.pending,
    )
    return bool(session.scalar(select(erasure | rule)))


def _require(reason: str, message: str) -> None:
    if not reason.strip():
        raise RequestRefused(message)
