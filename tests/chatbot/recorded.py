"""Recorded conversations made by hand for tests."""

from typing import Any

from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, Event, Head, Status, VisitorId
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import Review


def visitor(text: str) -> tuple[str, dict[str, Any]]:
    return "message.created", {"role": "visitor", "text": text, "author": "v"}


def agent(text: str) -> tuple[str, dict[str, Any]]:
    return "message.created", {"role": "agent", "text": text, "author": "ada"}


def reply(
    text: str, *, version: str = "v1", end: str = "end", **more: Any
) -> tuple[str, dict[str, Any]]:
    return "reply.completed", {
        "reply_id": f"r-{text}",
        "text": text,
        "finish_reason": end,
        "version": version,
        **more,
    }


def record_conversation(
    database: Database,
    name: str,
    *events: tuple[str, dict[str, Any]],
    site: str = "demo",
    status: Status = "bot",
    at: int = 1_700_000_000_000,
) -> None:
    """Put a conversation into the record as the archiver does; offsets count from 1."""
    head = Head(
        conversation_id=ConversationId(name),
        epoch="e1",
        offset=len(events),
        status=status,
        site=site,
        visitor=VisitorId("v"),
        agent="",
        kind="chat",
        pinned_version="",
        created_at=at,
        updated_at=at + len(events),
    )
    log = [
        Event(n, kind, at + n, data)  # type: ignore[arg-type]
        for n, (kind, data) in enumerate(events, start=1)
    ]
    Archive(database).store(head, log)


def review(
    database: Database,
    name: str,
    offset: int,
    verdict: str | None = None,
    correction: str | None = None,
) -> None:
    with database.session() as session:
        session.merge(
            Review(
                conversation_id=name,
                offset=offset,
                verdict=verdict,
                correction=correction,
                comment="",
                reviewer="ada",
                updated_at=now_ms(),
            )
        )
