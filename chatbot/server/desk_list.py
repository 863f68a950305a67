"""The lines of the desk's list: a conversation's head, and what its log says in short.

What a log says is folded event by event and remembered, since many desks ask for the same lines:
a change costs the reading of what is new.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from chatbot import protocol
from chatbot.conversation.events import ConversationId, Event, Head
from chatbot.conversation.interface import Catchup, ConversationLog

MOST_LISTED = 200
PREVIEW_CHARS = 200
_KEPT = 2000  # conversations remembered

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a log says up to ``(epoch, offset)``; see :func:`protocol.conversation_listed`."""

    epoch: str = ""
    offset: int = 0
    preview: str = ""
    since: int = 0
    reason: str = ""
    failure: str = ""  # why the last reply failed
    asked: tuple[tuple[int, int], ...] = ()  # (offset, time) of what nobody has answered yet
    tags: tuple[str, ...] = ()

    def after(self, catchup: Catchup) -> "Summary":
        """The summary with what was read; from the start when the log is not the one it knew."""
        summary = self if catchup.recovered else Summary()
        for event in catchup.events:
            summary = summary._with(event)
        return replace(summary, epoch=catchup.head.epoch, offset=catchup.head.offset)

    def _with(self, event: Event) -> "Summary":
        data = event.data
        match event.type:
            case "message.created" if data["role"] == "visitor":
                asked = (*self.asked, (event.offset, event.at))
                return replace(self, preview=_short(data["text"]), asked=asked)
            case "message.created":
                return replace(self, preview=_short(data["text"]), asked=())
            case "reply.completed":
                left = tuple(item for item in self.asked if item[0] > data["upto"])
                return replace(self, preview=_short(data["text"]) or self.preview, asked=left)
            case "reply.failed":
                return replace(self, failure=str(data["reason"]))
            case "status.changed":
                return replace(self, since=event.at, reason=self._reason(data["reason"]))
            case "tags.changed":
                return replace(self, tags=tuple(data["tags"]))
            case _:
                return self

    def _reason(self, reason: str) -> str:
        if reason == "reply_failed":
            return f"the bot could not answer ({self.failure})"
        return reason


class DeskList:
    """Builds lines."""

    def __init__(self, conversations: ConversationLog) -> None:
        self._log = conversations
        self._summaries: OrderedDict[str, Summary] = OrderedDict()

    async def all(self) -> list[Line]:
        """Lines of the conversations that are not closed, last activity first. Those in which
        nobody wrote yet are left out."""
        heads = await self._log.open_conversations(limit=MOST_LISTED)
        return [await self._line(head) for head in heads if head.offset > 0]

    async def one(self, conversation_id: ConversationId) -> Line | None:
        """The line of one conversation, also a closed one; None when it is not for the list."""
        head = await self._log.head(conversation_id)
        if head is None:
            self._forget(conversation_id)
        if head is None or head.kind != "chat" or head.offset == 0:
            return None
        return await self._line(head)

    def _forget(self, conversation_id: ConversationId) -> None:
        """It was erased: nothing of it stays in memory."""
        self._summaries.pop(conversation_id, None)

    async def _line(self, head: Head) -> Line:
        summary = await self._summary(head)
        return protocol.conversation_listed(
            conversation_id=head.conversation_id,
            status=head.status,
            site=head.site,
            visitor=head.visitor,
            agent=head.agent,
            created_at=head.created_at,
            updated_at=head.updated_at,
            since=summary.since or head.created_at,
            reason=summary.reason,
            asked_at=summary.asked[0][1] if summary.asked else 0,
            tags=list(summary.tags),
            preview=summary.preview,
        )

    async def _summary(self, head: Head) -> Summary:
        known = self._summaries.get(head.conversation_id)
        if known is not None and (known.epoch, known.offset) == (head.epoch, head.offset):
            return known
        cursor = (known.epoch, known.offset) if known else (None, None)
        catchup = await self._log.catch_up(head.conversation_id, *cursor)
        fresh = (known or Summary()).after(catchup)
        self._summaries[head.conversation_id] = fresh
        self._summaries.move_to_end(head.conversation_id)
        while len(self._summaries) > _KEPT:
            self._summaries.popitem(last=False)
        return fresh


def _short(text: object) -> str:
    return str(text)[:PREVIEW_CHARS]
