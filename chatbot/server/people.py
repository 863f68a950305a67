"""Whether people answer on a site now, and how long they take: what a visitor is told who asks
for one.

The wait is estimated from what really happened. Of each recent wait that an agent ended, the
record says when it began and ended, and so how many waited at the time: its length divided by its
place in the line is what one place costs. The estimate is the median of that, times the visitor's
own place.
"""

import asyncio
import statistics
import time
from dataclasses import dataclass

from sqlalchemy import select

from chatbot.conversation.events import ConversationId, Head
from chatbot.conversation.interface import ConversationLog
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, EventRow
from chatbot.server.site_settings import WidgetSettings, opening
from chatbot.server.sites import get_site

LOOK_BACK_DAYS = 7
MOST_EVENTS = 2000  # status changes that an estimate looks at
MOST_WAITS = 50  # the newest ones count
LEAST_WAITS = 3  # fewer say nothing
WAITS_AGE = 30.0  # seconds that an estimate is kept
LINE_AGE = 2.0  # seconds that a look at the line is kept
MOST_WAITING = 500


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait for a person; Unix ms."""

    began: int
    ended: int


@dataclass(frozen=True, slots=True)
class People:
    """``place``: the visitor's in the line, 1 is next; for one who does not wait yet, the place
    they would get. ``expected_wait``: seconds from the begin of the wait, None when too little is
    known. ``opens_at``: Unix ms, None when open or never."""

    open: bool
    opens_at: int | None
    place: int
    expected_wait: int | None


def wait_per_place(waits: list[Wait]) -> float | None:
    """Seconds that one place in the line costs: the median over ``waits``, each divided by the
    place that it began with. None when there are too few."""
    newest = sorted(waits, key=lambda wait: wait.ended)[-MOST_WAITS:]
    if len(newest) < LEAST_WAITS:
        return None
    costs = []
    for wait in newest:
        before = sum(other.began < wait.began < other.ended for other in waits)
        costs.append((wait.ended - wait.began) / 1000 / (before + 1))
    return statistics.median(costs)


class PeopleDesk:
    """One per server process. What it looked up is kept for seconds, so that a crowd that waits
    costs the stores no more than one visitor."""

    def __init__(self, conversations: ConversationLog, database: Database) -> None:
        self._log = conversations
        self._database = database
        self._lock = asyncio.Lock()
        self._costs: dict[str, tuple[float, float | None]] = {}
        self._lines: dict[str, tuple[float, list[ConversationId]]] = {}
        self._since: dict[tuple[ConversationId, str], int] = {}

    async def ask(self, site: str, conversation_id: ConversationId) -> People:
        """Raises StoreUnavailable."""
        async with self._lock:
            settings = await asyncio.to_thread(self._settings, site)
            line = await self._line(site)
            cost = await self._cost(site)
        is_open, opens_at = opening(settings, time.time())
        waits = conversation_id in line
        place = line.index(conversation_id) + 1 if waits else len(line) + 1
        expected = None if cost is None else max(1, round(cost * place))
        return People(is_open, opens_at, place, expected if is_open else None)

    def _settings(self, site: str) -> WidgetSettings:
        return WidgetSettings.model_validate(get_site(self._database, site).widget)

    async def _line(self, site: str) -> list[ConversationId]:
        kept = self._lines.get(site)
        if kept is not None and time.monotonic() - kept[0] < LINE_AGE:
            return kept[1]
        heads = await self._log.open_conversations(sites=[site], limit=MOST_WAITING)
        waiting = [head for head in heads if head.status == "waiting"]
        since = {head.conversation_id: await self._waiting_since(head) for head in waiting}
        self._since = {
            (head.conversation_id, head.epoch): since[head.conversation_id] for head in waiting
        }
        line = sorted(since, key=lambda name: (since[name], name))
        self._lines[site] = (time.monotonic(), line)
        return line

    async def _waiting_since(self, head: Head) -> int:
        known = self._since.get((head.conversation_id, head.epoch))
        if known is not None:
            return known
        events = await self._log.read(head.conversation_id)
        moves = [event.at for event in events if event.type == "status.changed"]
        return moves[-1] if moves else head.created_at

    async def _cost(self, site: str) -> float | None:
        kept = self._costs.get(site)
        if kept is None or time.monotonic() - kept[0] >= WAITS_AGE:
            waits = await asyncio.to_thread(recent_waits, self._database, site)
            kept = self._costs[site] = (time.monotonic(), wait_per_place(waits))
        return kept[1]


def recent_waits(database: Database, site: str) -> list[Wait]:
    """Waits of a site that an agent ended in the last days, from the record."""
    since = int((time.time() - LOOK_BACK_DAYS * 86400) * 1000)
    wanted = (
        select(EventRow.conversation_id, EventRow.at, EventRow.data)
        .join(Conversation, Conversation.id == EventRow.conversation_id)
        .where(EventRow.type == "status.changed", EventRow.at >= since, Conversation.site == site)
        .order_by(EventRow.at.desc(), EventRow.offset.desc())
        .limit(MOST_EVENTS)
    )
    with database.session() as session:
        rows = session.execute(wanted).all()
    began: dict[str, int] = {}
    waits = []
    for conversation_id, at, data in reversed(rows):
        if data["status"] == "waiting":
            began[conversation_id] = at
            continue
        start = began.pop(conversation_id, None)
        if data["status"] == "human" and start is not None:
            waits.append(Wait(start, at))
    return waits
