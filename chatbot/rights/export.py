"""Conversations out of the record, as JSONL or CSV: streamed into the caller's file, or into one
of our own that is listed, expires, and is erased with the people in it.

JSONL has one conversation a line with its events and reviews; CSV one row a message or event that
a person can read. Both are read in batches: never all of it is in memory.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Select, func, select

from chatbot.conversation.archive import visible_events
from chatbot.conversation.events import Event
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, EventRow, Review
from chatbot.redaction import redact
from chatbot.rights.rules import safe_cell

Format = Literal["jsonl", "csv"]
BATCH = 50  # conversations read at once
COLUMNS = (
    "conversation_id", "site", "visitor", "offset", "at", "type", "role", "author", "text",
    "version", "finish_reason", "score", "verdict", "correction", "review_comment",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which conversations: empty values mean any. ``since`` and ``until`` are bounds of the last
    activity (Unix ms), the second one excluded."""

    site: str = ""
    visitor: str = ""
    status: str = ""
    since: int | None = None
    until: int | None = None


def count(database: Database, wanted: Wanted) -> int:
    """How many conversations there are."""
    query = _narrowed(select(func.count()).select_from(Conversation), wanted)
    with database.session() as session:
        return int(session.execute(query).scalar_one())


def batches(database: Database, wanted: Wanted) -> Iterator[list[str]]:
    """Ids of the conversations, in the order of their ids, a batch at a time."""
    last = ""
    while True:
        query = _narrowed(select(Conversation.id), wanted).where(Conversation.id > last)
        with database.session() as session:
            names = list(session.scalars(query.order_by(Conversation.id).limit(BATCH)))
        if not names:
            return
        yield names
        last = names[-1]


def lines(
    database: Database, names: Iterable[str], format_name: Format, redacted: bool
) -> Iterator[str]:
    """The text of these conversations in the file, whole lines. Those that are gone meanwhile are
    left out."""
    write = _jsonl if format_name == "jsonl" else _csv
    for conversation, events, reviews in _read(database, list(names)):
        yield write(conversation, events, reviews, _redactor(redacted))


def header(format_name: Format) -> str:
    """What a file begins with."""
    return "" if format_name == "jsonl" else _row(COLUMNS)


def _narrowed(query: Select[Any], wanted: Wanted) -> Select[Any]:
    if wanted.site:
        query = query.where(Conversation.site == wanted.site)
    if wanted.visitor:
        query = query.where(Conversation.visitor == wanted.visitor)
    if wanted.status:
        query = query.where(Conversation.status == wanted.status)
    if wanted.since is not None:
        query = query.where(Conversation.updated_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(Conversation.updated_at < wanted.until)
    return query


def _read(
    database: Database, names: list[str]
) -> Iterator[tuple[Conversation, list[Event], list[Review]]]:
    with database.session() as session:
        rows = session.scalars(
            select(Conversation).where(Conversation.id.in_(names)).order_by(Conversation.id)
        ).all()
        events = session.scalars(
            select(EventRow)
            .where(EventRow.conversation_id.in_(names))
            .order_by(EventRow.conversation_id, EventRow.epoch.desc(), EventRow.offset)
        ).all()
        reviews = session.scalars(
            select(Review).where(Review.conversation_id.in_(names)).order_by(Review.offset)
        ).all()
    for row in rows:
        yield (
            row,
            visible_events(event for event in events if event.conversation_id == row.id),
            [review for review in reviews if review.conversation_id == row.id],
        )


def _redactor(redacted: bool) -> Callable[[Any], Any]:
    """Replaces personal data in a text, if asked to; None stays None."""
    if not redacted:
        return lambda text: text
    return lambda text: redact(text)[0] if isinstance(text, str) else text


TEXTS = ("text", "comment", "reason", "tags")  # fields of events that somebody wrote


def _cleaned(value: Any, clean: Callable[[Any], Any]) -> Any:
    """An event's data with every text in it cleaned, also those of drafts further in."""
    if isinstance(value, dict):
        return {
            name: _words(inner, clean) if name in TEXTS else _cleaned(inner, clean)
            for name, inner in value.items()
        }
    return [_cleaned(inner, clean) for inner in value] if isinstance(value, list) else value


def _words(value: Any, clean: Callable[[Any], Any]) -> Any:
    return [clean(word) for word in value] if isinstance(value, list) else clean(value)


def _jsonl(
    row: Conversation, events: list[Event], reviews: list[Review], clean: Callable[[Any], Any]
) -> str:
    value = {
        "id": row.id,
        "site": row.site,
        "visitor": row.visitor,
        "status": row.status,
        "started_at": row.started_at,
        "updated_at": row.updated_at,
        "score": row.score,
        "excluded": row.excluded,
        "exclusion_reason": clean(row.exclusion_reason),
        "events": [_cleaned(event.to_wire(), clean) for event in events],
        "reviews": [
            {
                "offset": review.offset,
                "verdict": review.verdict,
                "correction": clean(review.correction),
                "comment": clean(review.comment),
                "reviewer": review.reviewer,
                "updated_at": review.updated_at,
            }
            for review in reviews
        ],
    }
    return json.dumps(value, ensure_ascii=False) + "\n"


def _csv(
    row: Conversation, events: list[Event], reviews: list[Review], clean: Callable[[Any], Any]
) -> str:
    said = {review.offset: review for review in reviews}
    text = ""
    for event in events:
        data = event.data
        review = said.get(event.offset)
        words = data.get("text") or data.get("comment") or data.get("reason") or ""
        text += _row(
            (
                row.id,
                row.site,
                row.visitor,
                event.offset,
                _iso(event.at),
                event.type,
                data.get("role") or ("bot" if event.type.startswith("reply.") else ""),
                data.get("author") or data.get("actor") or "",
                clean(words),
                data.get("version", ""),
                data.get("finish_reason", ""),
                data.get("score"),
                review.verdict if review else None,
                clean(review.correction) if review else None,
                clean(review.comment) if review else None,
            )
        )
    return text


def _row(cells: Iterable[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow([safe_cell(cell) for cell in cells])
    return out.getvalue()


def _iso(milliseconds: int) -> str:
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
