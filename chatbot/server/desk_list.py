"""The lines of the desk's list: a conversation's head with a preview of its last message."""

from collections import OrderedDict
from typing import Any

from chatbot import protocol
from chatbot.conversation.events import ConversationId, Event, Head
from chatbot.conversation.interface import ConversationLog

MOST_LISTED = 200
PREVIEW_CHARS = 200
_PREVIEWED = frozenset({"message.created", "reply.completed"})
_TAIL = 20  # events looked at for the last message
_KEPT = 2000  # previews remembered

Line = dict[str, Any]


class DeskList:
    """Builds lines; remembers previews, since many desks ask for the same ones."""

    def __init__(self, conversations: ConversationLog) -> None:
        self._log = conversations
        self._previews: OrderedDict[tuple[str, str, int], str] = OrderedDict()

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
        for key in [key for key in self._previews if key[0] == conversation_id]:
            del self._previews[key]

    async def _line(self, head: Head) -> Line:
        return protocol.conversation_listed(
            conversation_id=head.conversation_id,
            status=head.status,
            site=head.site,
            visitor=head.visitor,
            agent=head.agent,
            created_at=head.created_at,
            updated_at=head.updated_at,
            preview=await self._preview(head),
        )

    async def _preview(self, head: Head) -> str:
        key = (head.conversation_id, head.epoch, head.offset)
        if key not in self._previews:
            tail = max(0, head.offset - _TAIL)
            catchup = await self._log.catch_up(head.conversation_id, head.epoch, tail)
            self._previews[key] = _last_message(catchup.events)
            while len(self._previews) > _KEPT:
                self._previews.popitem(last=False)
        return self._previews[key]


def _last_message(events: list[Event]) -> str:
    for event in reversed(events):
        if event.type in _PREVIEWED and event.data["text"]:
            return str(event.data["text"])[:PREVIEW_CHARS]
    return ""
