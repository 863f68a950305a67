"""Whose words are they: a visitor of a site, and what there is of theirs.

A person is a visitor id of a site: anonymous (``v-…``, made for a browser) or a customer whom the
site knows (``u-…``, computed from the site and the ``sub`` of its tokens).
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.interface import ConversationLog
from chatbot.errors import NotFound
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, ErasedConversation, Erasure, Hold

RUNNING, DONE = "running", "done"  # states of an erasure
LOCK = "data-rights"  # holds, and what they forbid, are decided under it


@dataclass(frozen=True, slots=True)
class Person:
    """A visitor of a site."""

    site: str
    visitor: str

    @property
    def known(self) -> bool:
        """Whether the site itself vouched for who it is."""
        return self.visitor.startswith("u-")


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of a person. Times: Unix ms, None without a conversation."""

    person: Person
    conversations: list[str]
    messages: int
    first_at: int | None
    last_at: int | None
    hold: Hold | None
    erasures: list[str]

    @property
    def known(self) -> bool:
        """Whether the site itself vouched for who it is. An id can be computed for any ``sub``:
        for somebody who never spoke here the site never vouched, hold or not."""
        return self.person.known and bool(self.conversations or self.erasures)


def recorded_ids(database: Database, person: Person, until: int) -> list[str]:
    """The person's conversations in the record that began at ``until`` (Unix ms) or before."""
    wanted = select(Conversation.id).where(
        Conversation.site == person.site,
        Conversation.visitor == person.visitor,
        Conversation.started_at <= until,
    )
    with database.session() as session:
        return list(session.scalars(wanted))


def person_of_visitor(database: Database, visitor: str) -> Person:
    """Who has this visitor id.

    Raises:
        NotFound: nothing is recorded, held or erased under it.
    """
    tables: tuple[Any, ...] = (Conversation, Hold, Erasure)
    with database.session() as session:
        for table in tables:
            site = session.scalar(select(table.site).where(table.visitor == visitor).limit(1))
            if site is not None:
                return Person(site, visitor)
    raise NotFound(
        f"there is nothing of a visitor {visitor}; a chat that began a moment ago is here soon"
    )


async def person_of_conversation(
    database: Database, log: ConversationLog, conversation_id: str
) -> Person:
    """Who spoke in this conversation.

    Raises:
        NotFound: there is no such conversation; says so when it was erased.
    """
    head = await log.head(ConversationId(conversation_id))
    if head is not None and head.kind == "chat":
        return Person(head.site, head.visitor)
    with database.session() as session:
        row = session.get(Conversation, conversation_id)
        gone = session.get(ErasedConversation, conversation_id)
    if row is not None:
        return Person(row.site, row.visitor)
    why = "it was erased" if gone is not None else "there is none of this id"
    raise NotFound(f"conversation {conversation_id}: {why}")


async def conversations_of(
    database: Database, log: ConversationLog, person: Person, until: int
) -> list[str]:
    """The person's conversations in record and log that began at ``until`` or before."""
    recorded = await asyncio.to_thread(recorded_ids, database, person, until)
    live = await log.conversations_of(person.site, VisitorId(person.visitor), until)
    return sorted({*recorded, *live})


async def describe(database: Database, log: ConversationLog, person: Person) -> Found:
    """What there is of a person; an empty answer when there is nothing."""
    names = await conversations_of(database, log, person, await log.now_ms())
    return await asyncio.to_thread(_described, database, person, names)


def _described(database: Database, person: Person, names: list[str]) -> Found:
    mine = (Conversation.site == person.site, Conversation.visitor == person.visitor)
    numbers = select(
        func.coalesce(func.sum(Conversation.messages), 0),
        func.min(Conversation.started_at),
        func.max(Conversation.updated_at),
    ).where(*mine)
    erased = select(Erasure.id).where(
        Erasure.site == person.site, Erasure.visitor == person.visitor
    )
    with database.session() as session:
        messages, first, last = session.execute(numbers).one()
        hold = session.scalar(hold_query(person))
        erasures = list(session.scalars(erased.order_by(Erasure.requested_at)))
    return Found(person, names, int(messages), first, last, hold, erasures)


def hold_query(person: Person) -> Any:
    """Selects the hold in force, if there is one."""
    return select(Hold).where(
        Hold.site == person.site, Hold.visitor == person.visitor, Hold.lifted_at.is_(None)
    )
