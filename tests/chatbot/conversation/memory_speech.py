"""What is spoken in a call, in memory: a part of MemoryLog."""

import time
from abc import abstractmethod
from typing import Any, Literal

from chatbot.conversation.events import Accepted, ConversationId, Partial
from chatbot.conversation.interface import PartialOutcome
from chatbot.errors import Conflict, RequestRefused


class MemorySpeech:
    @abstractmethod
    def _get(self, conversation_id: ConversationId) -> Any: ...

    @abstractmethod
    def _append(self, c: Any, kind: Any, data: dict[str, Any]) -> int: ...

    @abstractmethod
    def _notify(self, c: Any) -> None: ...

    async def append_utterance(
        self,
        conversation_id: ConversationId,
        *,
        speaker: Literal["visitor", "agent"],
        text: str,
        utterance_id: str,
        spoken_at: int,
    ) -> Accepted:
        c = self._get(conversation_id)
        seen = c.ids.get(f"visitor:{utterance_id}", c.ids.get(f"agent:{utterance_id}"))
        if seen is not None:
            return Accepted(seen, True)
        if c.head.status != "human":
            raise Conflict(f"nobody holds this call (it is {c.head.status})")
        c.talk.pop(utterance_id, None)
        data: dict[str, Any] = {
            "role": speaker,
            "text": text,
            "client_message_id": utterance_id,
            "spoken_at": spoken_at,
            "author": c.head.agent if speaker == "agent" else c.head.visitor,
        }
        if speaker == "visitor" and spoken_at < c.said_at:
            data["late"] = c.said
        elif speaker == "agent" and c.asked > c.answered and spoken_at < c.asked_at:
            data["late"] = c.asked
        offset = c.ids[f"{speaker}:{utterance_id}"] = self._append(c, "message.created", data)
        if "late" not in data and speaker == "visitor":
            c.asked, c.asked_at = offset, spoken_at
        elif "late" not in data:
            c.answered, c.said, c.said_at = max(c.answered, offset), offset, spoken_at
        self._notify(c)
        return Accepted(offset, False)

    async def put_partial(
        self,
        conversation_id: ConversationId,
        partial: Partial,
        *,
        keep_seconds: float,
        most: int,
    ) -> PartialOutcome:
        c = self._get(conversation_id)
        if f"visitor:{partial.id}" in c.ids or f"agent:{partial.id}" in c.ids:
            return "final"
        if c.head.status != "human":
            raise Conflict(f"nobody holds this call (it is {c.head.status})")
        now = time.monotonic()
        c.talk = {i: kept for i, kept in c.talk.items() if now - kept[0] <= keep_seconds}
        known = c.talk.get(partial.id)
        if known is not None and known[1].at > partial.at:
            return "stale"
        if known is None and len(c.talk) >= most:
            raise RequestRefused(f"{most} are open")
        c.talk[partial.id] = (now, partial)
        self._notify(c)
        return "kept"

    async def partials(self, conversation_id: ConversationId, keep_seconds: float) -> list[Partial]:
        c = self._all_talk(conversation_id)
        now = time.monotonic()
        fresh = [partial for came, partial in c.values() if now - came < keep_seconds]
        return sorted(fresh, key=lambda partial: (partial.at, partial.id))

    def _all_talk(self, conversation_id: ConversationId) -> dict[str, tuple[float, Partial]]:
        talk: dict[str, tuple[float, Partial]] = self._get(conversation_id).talk
        return talk
