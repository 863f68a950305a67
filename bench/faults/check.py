"""Compares what visitors saw with the log and the record."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.faults.engine import is_whole
from bench.faults.visitors import Visitor
from chatbot.conversation.archive import Archive
from chatbot.conversation.events import STAFF_ONLY, ConversationId, Event
from chatbot.conversation.interface import Catchup, ConversationLog
from chatbot.conversation.rules import turn_after

QUIET_SECONDS = 60.0


@dataclass(slots=True)
class Findings:
    """Numbers of what went wrong; all but the first three and ``longest_gap_s`` must be 0."""

    messages: int = 0
    acknowledged: int = 0
    replies: int = 0
    lost: int = 0  # acknowledged, and not in the log
    duplicated: int = 0  # more than once in the log, or shown more than once
    torn: int = 0  # shown text is not the log's, or the text is not what one reply would be
    repeated: int = 0  # a reply that ended twice
    orphaned: int = 0  # a question that nobody answers any more
    gaps: int = 0  # offsets missing in the log, or events that a visitor was not shown
    talked_over: int = 0  # bot text after a hand-over
    unrecorded: int = 0  # events that the record lacks, or has otherwise
    longest_gap_s: float = 0.0

    @property
    def clean(self) -> bool:
        wrong = asdict(self)
        for good in ("messages", "acknowledged", "replies", "longest_gap_s"):
            del wrong[good]
        return not any(wrong.values())

    def add(self, other: "Findings") -> None:
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            is_gap = name == "longest_gap_s"
            setattr(self, name, max(mine, value) if is_gap else mine + value)


async def check(
    log: ConversationLog,
    archive: Archive,
    visitors: Sequence[Visitor],
    *,
    sealed: bool = True,
    whole_view: bool = True,
) -> Findings:
    """Wait until nothing is due any more, then compare. ``sealed``: replies were written by the
    paced engine. ``whole_view``: the visitors are still connected, so they must have it all."""
    found = Findings()
    for visitor in visitors:
        name = ConversationId(visitor.client.state.conversation_id or "")
        quiet = await _quiet(log, name)
        found.orphaned += turn_after(quiet.events).bot_owes_reply
        if whole_view:
            await visitor.until(
                lambda v=visitor, q=quiet: v.client.state.offset >= q.head.offset,  # type: ignore[misc]
                QUIET_SECONDS,
            )
        found.add(compare(visitor, quiet.events, sealed, whole_view))
        found.unrecorded += await _unrecorded(archive, name, quiet.events)
    return found


async def _quiet(log: ConversationLog, name: ConversationId) -> Catchup:
    """The conversation when no reply is being written or due, or at the latest then."""
    deadline = asyncio.get_running_loop().time() + QUIET_SECONDS
    while True:
        seen = await log.catch_up(name, None, None)
        due = seen.live is not None or turn_after(seen.events).bot_owes_reply
        if not due or asyncio.get_running_loop().time() > deadline:
            return seen
        await asyncio.sleep(0.1)


def compare(visitor: Visitor, events: list[Event], sealed: bool, whole: bool) -> Findings:
    found = Findings(
        messages=len(visitor.sent),
        acknowledged=len(visitor.acknowledged),
        longest_gap_s=round(visitor.longest_gap, 2),
    )
    found.gaps += [event.offset for event in events] != list(range(1, len(events) + 1))
    said = [event for event in events if event.type == "message.created"]
    logged = Counter(event.data["client_message_id"] for event in said)
    found.lost += sum(1 for message_id in visitor.acknowledged if not logged[message_id])
    found.duplicated += sum(count - 1 for count in logged.values())
    found.duplicated += sum(count - 1 for count in visitor.said.values())
    shown = {event.offset for event in events if event.type not in STAFF_ONLY}
    found.gaps += sum(1 for offset in visitor.said if offset not in shown)
    if whole:
        found.gaps += sum(1 for event in said if event.offset not in visitor.said)
    _compare_replies(visitor, events, found, sealed, whole)
    return found


def _compare_replies(
    visitor: Visitor, events: list[Event], found: Findings, sealed: bool, whole: bool
) -> None:
    ends = [event for event in events if event.type in ("reply.completed", "reply.failed")]
    texts = {event.data["reply_id"]: str(event.data["text"]) for event in ends}
    found.replies += len(ends)
    found.repeated += len(ends) - len(texts)
    found.repeated += sum(count - 1 for count in visitor.endings.values())
    found.torn += visitor.rewritten
    for reply_id, (_, text) in visitor.ended.items():
        found.torn += texts.get(reply_id) != text
    for reply_id, text in visitor.streamed.items():
        found.torn += not texts.get(reply_id, text).startswith(text)
    if whole:
        found.gaps += sum(1 for reply_id in texts if reply_id not in visitor.ended)
    status = "bot"
    for event in events:
        if event.type == "status.changed":
            status = event.data["status"]
        elif event.type == "reply.completed":
            found.talked_over += status != "bot"
            if sealed and event.data["finish_reason"] == "end":
                found.torn += not is_whole(str(event.data["text"]))


async def _unrecorded(archive: Archive, name: ConversationId, events: list[Event]) -> int:
    """Events that are not in the record as they are in the log; waits for the archiver."""
    deadline = asyncio.get_running_loop().time() + QUIET_SECONDS
    while True:
        loaded = await asyncio.to_thread(archive.load, name)
        recorded = loaded[1] if loaded else []
        wrong = len(events) - sum(1 for event in events if event in recorded)
        wrong += len(recorded) - len(events) if len(recorded) > len(events) else 0
        if not wrong or asyncio.get_running_loop().time() > deadline:
            return wrong
        await asyncio.sleep(0.2)
