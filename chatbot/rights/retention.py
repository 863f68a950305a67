"""Retention: what a site says, and carrying it out in small batches.

Several processes may do it at once, and each may stop at any moment: what is due is looked for
anew each time, closing is one step of the store, and deleting is resumed (``deletion.py``).
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, exists, func, select

from chatbot.conversation.interface import ConversationLog
from chatbot.errors import NotFound
from chatbot.record.audit import record
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, ErasedConversation, Hold, Site
from chatbot.rights import deletion
from chatbot.rights.people import LOCK
from chatbot.rights.rules import Overrides, Retention, effective
from chatbot.settings import Settings

BATCH = 50  # conversations deleted in one round
TOMBSTONES_KEPT_MS = 30 * 86_400_000  # of retention; nothing is that late. People's stay.


@dataclass(frozen=True, slots=True)
class SiteRetention:
    """A site's own numbers, those that hold, and how many conversations are due to be deleted by
    them now (``held``: those that a legal hold keeps)."""

    site: str
    own: Overrides
    holds: Retention
    due: int
    held: int


def installation(settings: Settings) -> Retention:
    """What holds where a site says nothing."""
    return Retention(settings.idle_close_hours, settings.log_days, settings.record_days)


def site_retention(database: Database, settings: Settings, site: str, now: int) -> SiteRetention:
    """Raises NotFound: there is no such site."""
    with database.session() as session:
        row = session.get(Site, site)
        if row is None:
            raise NotFound(f"there is no site {site}")
        own = _own(row)
        holds = effective(own, installation(settings))
        before = holds.record_before(now)
        due = held = 0
        if before is not None:
            of_site = (Conversation.site == site, Conversation.updated_at <= before)
            count = select(func.count()).select_from(Conversation).where(*of_site)
            held = session.execute(count.where(_on_hold())).scalar_one()
            due = session.execute(count).scalar_one() - held
    return SiteRetention(site, own, holds, due, held)


def set_site_retention(database: Database, site: str, own: Overrides, actor: str) -> None:
    """Give a site numbers of its own. Raises NotFound."""
    with database.exclusive_session("sites") as session:
        row = session.get(Site, site)
        if row is None:
            raise NotFound(f"there is no site {site}")
        values = {name: getattr(own, name) for name in Overrides.__dataclass_fields__}
        for name, value in values.items():
            setattr(row, name, value)
        record(session, actor, "site.retention", site, data=values)


def rules_of_sites(database: Database, settings: Settings) -> dict[str, Retention]:
    """What holds for each site that exists."""
    default = installation(settings)
    with database.session() as session:
        return {row.name: effective(_own(row), default) for row in session.scalars(select(Site))}


async def close_idle(database: Database, log: ConversationLog, settings: Settings, now: int) -> int:
    """Close the open conversations that are idle by their site's rule; how many."""
    rules = await asyncio.to_thread(rules_of_sites, database, settings)
    default = installation(settings)
    bounds = [rule.idle_before(now) for rule in [default, *rules.values()]]
    latest = max((bound for bound in bounds if bound is not None), default=None)
    if latest is None:
        return 0
    idle = [
        (name, bound)
        async for name, site, active in log.idle(latest)
        if (bound := rules.get(site, default).idle_before(now)) is not None and active <= bound
    ]
    closed = 0
    for name, bound in idle:
        closed += await log.close_idle(name, bound)
    return closed


async def delete_due(database: Database, log: ConversationLog, settings: Settings, now: int) -> int:
    """Delete one batch of conversations that are older than their site's rule allows; how many
    were deleted. Fewer than ``BATCH``: nothing more is due."""
    names = await asyncio.to_thread(_mark_due, database, settings, now)
    deleted = 0
    for name in names:
        deleted += not (await deletion.carry_out(database, log, name)).kept
    return deleted


async def finish_pending(database: Database, log: ConversationLog, before: int) -> int:
    """Go on with deletions that were begun before a moment (Unix ms); how many ended."""
    names = await asyncio.to_thread(deletion.pending, database, before)
    for name in names:
        await deletion.carry_out(database, log, name)
    return len(names)


def forget_old_marks(database: Database, now: int) -> None:
    """Drop the marks of what retention deleted long ago."""
    with database.session() as session:
        for row in session.scalars(
            select(ErasedConversation)
            .where(
                ErasedConversation.erasure_id == "",
                ~ErasedConversation.pending,
                ErasedConversation.erased_at < now - TOMBSTONES_KEPT_MS,
            )
            .limit(1000)
        ):
            session.delete(row)


def _mark_due(database: Database, settings: Settings, now: int) -> list[str]:
    """A batch of conversations to delete, marked."""
    rules = rules_of_sites(database, settings)
    default = installation(settings)
    with database.exclusive_session(LOCK) as session:
        found: list[str] = []
        for site, rule in [*rules.items(), (None, default)]:
            bound = rule.record_before(now)
            room = BATCH - len(found)
            if bound is None or room <= 0:
                continue
            names = list(session.scalars(_due(site, list(rules), bound).limit(room)))
            deletion.mark(session, names, now, only_before=bound)
            found += names
        return found


def _due(site: str | None, sites: list[str], bound: int) -> Select[str]:
    """Conversations of a site, or (None) of sites that are no more."""
    pending = exists().where(
        ErasedConversation.conversation_id == Conversation.id, ErasedConversation.pending
    )
    where = Conversation.site == site if site is not None else Conversation.site.not_in(sites)
    return (
        select(Conversation.id)
        .where(where, Conversation.updated_at <= bound, ~_on_hold(), ~pending)
        .order_by(Conversation.updated_at)
    )


def _on_hold() -> Any:
    return exists().where(
        Hold.site == Conversation.site,
        Hold.visitor == Conversation.visitor,
        Hold.lifted_at.is_(None),
    )


def _own(row: Site) -> Overrides:
    return Overrides(row.idle_close_hours, row.log_days, row.record_days)
