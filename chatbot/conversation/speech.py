"""What is spoken in a call, on Redis: final utterances are messages of the log, what a recogniser
still changes lies beside it for a while (``keys.TALK``), like the text of a reply that is being
written."""

import json
from abc import abstractmethod
from dataclasses import asdict
from typing import Any, Literal, cast

from redis.asyncio import Redis

from chatbot.conversation import keys
from chatbot.conversation.codec import to_json
from chatbot.conversation.events import Accepted, ConversationId, Partial
from chatbot.conversation.interface import PartialOutcome
from chatbot.conversation.store import as_text, call_store
from chatbot.errors import Conflict, RequestRefused


class Speech:
    """This part of :class:`chatbot.conversation.log.RedisLog`."""

    _redis: Redis
    _wait_for_disk: bool

    @abstractmethod
    async def _run(
        self, script: str, conversation_id: ConversationId, *args: str | int, sync: bool = False
    ) -> list[Any]: ...

    @abstractmethod
    async def now_ms(self) -> int: ...

    async def append_utterance(
        self,
        conversation_id: ConversationId,
        *,
        speaker: Literal["visitor", "agent"],
        text: str,
        utterance_id: str,
        spoken_at: int,
    ) -> Accepted:
        data = {
            "role": speaker,
            "text": text,
            "client_message_id": utterance_id,
            "spoken_at": spoken_at,
        }
        reply = await self._run(
            "utterance",
            conversation_id,
            speaker,
            utterance_id,
            to_json(data)[:-1],
            spoken_at,
            sync=self._wait_for_disk,
        )
        _refuse(reply)
        return Accepted(int(reply[1]), reply[2] == 1)

    async def put_partial(
        self,
        conversation_id: ConversationId,
        partial: Partial,
        *,
        keep_seconds: float,
        most: int,
    ) -> PartialOutcome:
        reply = await self._run(
            "partial",
            conversation_id,
            partial.id,
            to_json(asdict(partial)),
            partial.at,
            int(keep_seconds * 1000),
            most,
        )
        _refuse(reply)
        if reply[0] == "full":
            raise RequestRefused(
                f"{most} utterances of this call are open: send their finals first",
                limit="call_open_partials",
            )
        return cast(PartialOutcome, reply[0])

    async def partials(self, conversation_id: ConversationId, keep_seconds: float) -> list[Partial]:
        name = keys.keys_of(conversation_id).talk
        found: dict[Any, Any] = await call_store(lambda: self._redis.hgetall(name))
        if not found:
            return []
        since = await self.now_ms() - keep_seconds * 1000
        parts = (str(as_text(value)).split(" ", 2) for value in found.values())
        fresh = [Partial(**json.loads(text)) for came, _, text in parts if int(came) > since]
        return sorted(fresh, key=lambda partial: (partial.at, partial.id))


def _refuse(reply: list[Any]) -> None:
    if reply[0] == "conflict":
        raise Conflict(f"nobody holds this call (it is {reply[1]}): nothing more is taken")
