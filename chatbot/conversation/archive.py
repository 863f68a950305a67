"""The record's copy of the logs, in SQL: written by the archiver, read by the console, by reviews
and where a log has to be restored.

An event is stored once per ``(conversation, epoch, offset)``. Epochs sort by age. What counts is
one event per offset: that of the youngest epoch which begins at or before it. So when a log was
restored from the record while an older copy was still on its way, the late events of the old epoch
are kept but hidden by those of the new one.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import structlog
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import Select, and_, exists, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from chatbot.conversation.events import ConversationId, Event, EventType, Head
from chatbot.conversation.interface import CLOSED_KEPT_SECONDS, ConversationLog
from chatbot.errors import InputError, NotFound, StorageFull, StoreUnavailable
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, ErasedConversation, EventRow, Review, Site

log = structlog.get_logger()

BATCH = 100  # conversations of one round of the archiver
IDLE = 0.5  # seconds between rounds when nothing is left to do
BACKOFF = (0.5, 30.0)  # seconds to wait after the first, and at most after any, failed round
PREVIEW = 200  # characters
MAX_LIMIT = 500  # conversations of one page
DAY = 86400  # seconds
SHOWN = ("message.created", "reply.completed")  # what counts as a message


@dataclass(frozen=True, slots=True)
class ConversationFilter:
    """What to look for; None and "" mean anything. ``q`` is found in messages, replies, notes and
    comments, case not minded. ``rating`` is the visitor's score; ``reviewed`` whether staff
    reviewed a reply; ``version`` a version that wrote a reply. ``cursor`` is a page's
    ``next_cursor``."""

    status: str = ""
    site: str = ""
    q: str = ""
    version: str = ""
    rating: int | None = None
    reviewed: bool | None = None
    cursor: str = ""
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation of a page, with the versions that wrote in it."""

    conversation: Conversation
    versions: list[str]
    reviewed: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Conversations, last activity first. ``next_cursor`` is "" at the end."""

    items: list[Found]
    next_cursor: str


class Archive:
    """Synchronous, like :class:`chatbot.record.database.Database`; call it in a thread. Every
    method may raise StoreUnavailable or StorageFull."""

    def __init__(self, database: Database, log_days: int = CLOSED_KEPT_SECONDS // DAY) -> None:
        self._database = database
        self._log_days = log_days  # of sites that have no rule of their own

    def store(self, head: Head, events: Sequence[Event]) -> bool:
        """Copy events of the log whose head is ``head``, in one transaction. Storing the same
        events again changes nothing; those of a conversation that was erased are dropped.

        Returns:
            whether the record is done with them. False: the conversation is being erased at this
            moment, and it is not decided what becomes of it; come again.
        """
        with self._database.exclusive_session(conversation_lock(head.conversation_id)) as session:
            erased = session.get(ErasedConversation, head.conversation_id)
            if erased is not None and erased.pending:
                return False
            if erased is not None and head.created_at <= erased.erased_at:
                return True  # a copy that comes late
            self._copy(session, head, events)
            return True

    def _copy(self, session: Session, head: Head, events: Sequence[Event]) -> None:
        row = self._row(session, head)
        for event in events:
            session.execute(_insert(session, EventRow, _values(head, event)))
        if head.epoch < row.epoch:
            return  # a late copy of a log that was restored since
        row.epoch = head.epoch
        row.status = head.status
        row.updated_at = max(row.updated_at, head.updated_at)
        if events:
            row.recorded_offset = max(event.offset for event in events)
        self._summarise(session, row, events)

    def _row(self, session: Session, head: Head) -> Conversation:
        values = {
            "id": head.conversation_id,
            "epoch": head.epoch,
            "site": head.site,
            "visitor": head.visitor,
            "status": head.status,
            "started_at": head.created_at,
            "updated_at": head.updated_at,
            "recorded_offset": 0,
            "messages": 0,
            "preview": "",
            "excluded": False,
            "exclusion_reason": "",
        }
        session.execute(_insert(session, Conversation, values))
        # Two archivers may work on one conversation: the row's lock puts one after the other.
        wanted = select(Conversation).where(Conversation.id == head.conversation_id)
        return session.execute(wanted.with_for_update()).scalar_one()

    def _summarise(self, session: Session, row: Conversation, events: Sequence[Event]) -> None:
        shown = and_(EventRow.conversation_id == row.id, EventRow.type.in_(SHOWN))
        count = select(func.count(EventRow.offset.distinct())).where(shown)
        row.messages = session.execute(count).scalar_one()
        for event in events:
            if event.type == "rating.given":
                row.score = int(event.data["score"])
            by_visitor = event.type == "message.created" and event.data["role"] == "visitor"
            if by_visitor and not row.preview:
                row.preview = _plain(str(event.data["text"]))[:PREVIEW]

    def recorded(self, conversation_id: ConversationId) -> int | None:
        """Offset up to which the record has this conversation; None when it does not know it."""
        wanted = select(Conversation.recorded_offset).where(Conversation.id == conversation_id)
        with self._database.session() as session:
            return session.execute(wanted).scalar_one_or_none()

    def erased_at(self, conversation_id: ConversationId) -> int | None:
        """When a conversation of this id was erased last, Unix ms of the store's clock."""
        wanted = select(ErasedConversation.erased_at).where(
            ErasedConversation.conversation_id == conversation_id
        )
        with self._database.session() as session:
            return session.execute(wanted).scalar_one_or_none()

    def log_seconds(self, site: str) -> int:
        """How long a closed, recorded conversation of the site stays in the store."""
        with self._database.session() as session:
            days = session.execute(
                select(Site.log_days).where(Site.name == site)
            ).scalar_one_or_none()
        return (days or self._log_days) * DAY

    def load(self, conversation_id: ConversationId) -> tuple[Conversation, list[Event]] | None:
        """A conversation and its events in order, offsets contiguous from 1; None when the record
        does not know it, which it says at once, also while somebody else writes."""
        if self.recorded(conversation_id) is None:
            return None
        wanted = (
            select(EventRow)
            .where(EventRow.conversation_id == conversation_id)
            .order_by(EventRow.epoch.desc(), EventRow.offset)
        )
        with self._database.session() as session:
            # An update takes the write lock, also in SQLite: a copy that an archiver has begun is
            # finished first, and then seen here.
            session.execute(
                update(Conversation)
                .where(Conversation.id == conversation_id)
                .values(recorded_offset=Conversation.recorded_offset)
            )
            row = session.get(Conversation, conversation_id)
            if row is None:
                return None
            return row, visible_events(session.execute(wanted).scalars())

    def open_ids(self, since: int) -> list[ConversationId]:
        """Conversations that are not closed and were active since ``since`` (Unix ms)."""
        wanted = select(Conversation.id).where(
            Conversation.status != "closed", Conversation.updated_at >= since
        )
        with self._database.session() as session:
            return [ConversationId(found) for found in session.execute(wanted).scalars()]

    def search(self, wanted: ConversationFilter) -> Page:
        """One page of conversations.

        Raises:
            InputError: a limit out of range, or a cursor that is not one.
        """
        if not 1 <= wanted.limit <= MAX_LIMIT:
            raise InputError(f"limit={wanted.limit} is out of range: 1 to {MAX_LIMIT}")
        query = _filtered(wanted).order_by(Conversation.updated_at.desc(), Conversation.id.desc())
        with self._database.session() as session:
            rows = list(session.execute(query.limit(wanted.limit + 1)).scalars())
            more = len(rows) > wanted.limit
            rows = rows[: wanted.limit]
            ids = [row.id for row in rows]
            versions = _versions(session, ids)
            reviewed = set(
                session.execute(
                    select(Review.conversation_id).where(Review.conversation_id.in_(ids))
                ).scalars()
            )
        items = [Found(row, versions.get(row.id, []), row.id in reviewed) for row in rows]
        last = rows[-1] if more else None
        return Page(items, f"{last.updated_at}:{last.id}" if last else "")


def conversation_lock(conversation_id: str) -> str:
    """Name of the lock under which a conversation's rows are written or erased."""
    return f"conversation:{conversation_id}"


def _insert(session: Session, table: type[Any], values: dict[str, Any]) -> Any:
    dialect = session.get_bind().dialect.name
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).values(**values).on_conflict_do_nothing()


def _plain(text: str) -> str:
    """Text that a SQL text column takes: PostgreSQL refuses NUL."""
    return text.replace("\x00", "\ufffd")


def _values(head: Head, event: Event) -> dict[str, Any]:
    data = event.data
    return {
        "conversation_id": head.conversation_id,
        "epoch": head.epoch,
        "offset": event.offset,
        "type": event.type,
        "at": event.at,
        "version": str(data.get("version", "")),
        "text": _plain(str(data.get("text") or data.get("comment") or "")),
        "data": data,
    }


def visible_events(rows: Iterable[EventRow]) -> list[Event]:
    """One event per offset. ``rows`` come youngest epoch first, offsets rising within it."""
    kept: list[EventRow] = []
    bound: int | None = None  # where the younger epochs begin
    for _, group in groupby(rows, key=lambda row: row.epoch):
        of_epoch = list(group)
        kept += [row for row in of_epoch if bound is None or row.offset < bound]
        first = of_epoch[0].offset
        bound = first if bound is None else min(bound, first)
    kept.sort(key=lambda row: row.offset)
    return [Event(row.offset, cast(EventType, row.type), row.at, row.data) for row in kept]


def _filtered(wanted: ConversationFilter) -> Select[Conversation]:
    query = select(Conversation)
    if wanted.status:
        query = query.where(Conversation.status == wanted.status)
    if wanted.site:
        query = query.where(Conversation.site == wanted.site)
    if wanted.rating is not None:
        query = query.where(Conversation.score == wanted.rating)
    of_it = EventRow.conversation_id == Conversation.id
    if wanted.q:
        matches = EventRow.text.icontains(_plain(wanted.q), autoescape=True)
        query = query.where(exists().where(of_it, matches))
    if wanted.version:
        query = query.where(exists().where(of_it, EventRow.version == wanted.version))
    if wanted.reviewed is not None:
        review = exists().where(Review.conversation_id == Conversation.id)
        query = query.where(review if wanted.reviewed else ~review)
    if wanted.cursor:
        at, _, last_id = wanted.cursor.partition(":")
        if not at.isdecimal() or len(at) > 18 or not last_id:
            raise InputError("cursor: not one that a page gave")
        place = tuple_(Conversation.updated_at, Conversation.id)
        query = query.where(place < tuple_(int(at), last_id))
    return query


def _versions(session: Session, ids: list[str]) -> dict[str, list[str]]:
    wanted = (
        select(EventRow.conversation_id, EventRow.version)
        .where(EventRow.conversation_id.in_(ids), EventRow.version != "")
        .distinct()
        .order_by(EventRow.version)
    )
    found: dict[str, list[str]] = {}
    for conversation_id, version in session.execute(wanted):
        found.setdefault(conversation_id, []).append(version)
    return found


class Archiver:
    """At least one runs somewhere; several do no harm. What it has not yet copied stays in the
    store, however long the database is away."""

    def __init__(
        self, log: ConversationLog, archive: Archive, registry: CollectorRegistry | None = None
    ) -> None:
        self._log = log
        self._archive = archive
        self._lag = Gauge(
            "frontdesk_archive_lag_events",
            "Events in the store that the record lacks, of the conversations of the last round.",
            registry=registry or CollectorRegistry(),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Copy until ``stop`` is set; what is there then is copied once more if the stores are."""
        pause = BACKOFF[0]
        while True:
            last = stop.is_set()
            try:
                await self._log.restore_open()
                copied = await self.copy_once()
                pause, wait = BACKOFF[0], 0.0 if copied == BATCH else IDLE
            except (StoreUnavailable, StorageFull) as error:
                log.warning("archiver.store_away", error=str(error), retry_in=pause)
                pause, wait = min(2 * pause, BACKOFF[1]), pause
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), timeout=wait or 0.001)

    async def copy_once(self) -> int:
        """Copy one batch; the number of conversations that were fully copied.

        Raises:
            StoreUnavailable, StorageFull: of either store.
        """
        heads: list[Head] = []
        for conversation_id, offset in await self._log.unrecorded(BATCH):
            head = await self._log.head(conversation_id)
            if head is None:  # erased meanwhile
                await self._log.mark_recorded(conversation_id, offset, "")
            else:
                heads.append(head)
        lag = sum(head.offset - head.recorded for head in heads)
        self._lag.set(lag)
        copied = 0
        for head in heads:
            if await self._copy(head.conversation_id, head):
                copied += 1
                lag -= head.offset - head.recorded
                self._lag.set(lag)
        return copied

    async def _copy(self, conversation_id: ConversationId, head: Head) -> bool:
        try:
            catchup = await self._log.catch_up(conversation_id, head.epoch, head.recorded)
        except NotFound:
            return True  # erased a moment ago, and taken off the list with it
        if not catchup.recovered:
            return False  # restored a moment ago: its head is another one now
        head, events = catchup.head, catchup.events
        keep = CLOSED_KEPT_SECONDS
        try:
            if not await asyncio.to_thread(self._archive.store, head, events):
                return False
            if head.status == "closed":
                keep = await asyncio.to_thread(self._archive.log_seconds, head.site)
        except SQLAlchemyError as error:
            # One conversation that the database refuses must not keep the others from the record.
            log.error("archiver.refused", conversation=conversation_id, error=str(error))
            return False
        await self._log.mark_recorded(conversation_id, head.offset, head.epoch, keep)
        return True
