"""Bringing a conversation back into the store from the record.

Three cases, one rule: an epoch stands for a log of which nothing was lost.

- The store has no such conversation (flushed, expired): it is written anew from the record, with
  a new epoch. Readers reload it.
- The store was restarted (another ``run_id``) and its log is shorter than the record's: the end
  was lost with the store's last writes. The same.
- The store was restarted and its log is not shorter: events that nobody recorded may be lost all
  the same. The log goes on under a new epoch; readers whose offset is within what is left keep
  their place, others reload.
"""

import asyncio
import secrets

import structlog

from chatbot.conversation import keys
from chatbot.conversation.archive import Archive
from chatbot.conversation.codec import stored_event
from chatbot.conversation.events import ConversationId, Event
from chatbot.conversation.rules import turn_after
from chatbot.conversation.store import Scripts
from chatbot.errors import Erased, NotFound, StoreUnavailable

log = structlog.get_logger()


class Restorer:
    """Restores conversations one by one, when they are asked for."""

    def __init__(self, scripts: Scripts, archive: Archive | None) -> None:
        self._scripts = scripts
        self._archive = archive

    async def known(self, conversation_id: ConversationId) -> bool:
        """Whether the record has it. False when the record cannot be asked: new ids are random,
        so a new chat need not wait for a database that is away."""
        try:
            return await self._recorded(conversation_id) is not None
        except StoreUnavailable:
            return False

    async def erased_at(self, conversation_id: ConversationId) -> int:
        """When a conversation of this id was erased (Unix ms), 0 for never. 0 also when the
        record cannot be asked: the store remembers it too."""
        try:
            return await self._erased(conversation_id) or 0
        except StoreUnavailable:
            return 0

    async def _erased(self, conversation_id: ConversationId) -> int | None:
        if self._archive is None:
            return None
        return await asyncio.to_thread(self._archive.erased_at, conversation_id)

    async def open_since(self, since: int) -> list[ConversationId]:
        """Conversations that are open in the record and active since ``since`` (Unix ms)."""
        if self._archive is None:
            return []
        return await asyncio.to_thread(self._archive.open_ids, since)

    async def _recorded(self, conversation_id: ConversationId) -> int | None:
        if self._archive is None:
            return None
        return await asyncio.to_thread(self._archive.recorded, conversation_id)

    async def check(self, conversation_id: ConversationId) -> None:
        """After a restart of the store: go on with the log under a new epoch, or write it anew.

        Raises:
            StoreUnavailable: the record cannot be asked. Going on could give the offsets of lost
                events to other ones.
        """
        recorded = await self._recorded(conversation_id) or 0
        names = keys.keys_of(conversation_id).as_list()
        erased = await self._erased(conversation_id)
        if erased is not None:  # the store may have lost its last writes, the erasing among them
            await self._scripts.run("erase", names, conversation_id, erased, "")
        reply = await self._scripts.run("vouch", names, secrets.token_hex(8), recorded)
        if reply[0] != "ok" and recorded:
            await self.restore(conversation_id)

    async def restore(self, conversation_id: ConversationId) -> None:
        """Write the conversation from the record, unless another process was faster.

        Raises:
            Erased: it was erased.
            NotFound: the record does not have it.
        """
        found = None
        if self._archive is not None:
            found = await asyncio.to_thread(self._archive.load, conversation_id)
        if found is None:
            if await self._erased(conversation_id) is not None:
                raise _erased()
            raise NotFound(f"there is no conversation {conversation_id}")
        row, events = found
        keep = (
            0
            if self._archive is None
            else await asyncio.to_thread(self._archive.log_seconds, row.site)
        )
        turn = turn_after(events)
        reply = await self._scripts.run(
            "restore",
            keys.keys_of(conversation_id).as_list(),
            conversation_id,
            row.epoch,
            row.site,
            row.visitor,
            turn.status,
            turn.agent,
            row.started_at,
            row.updated_at,
            turn.asked,
            turn.answered,
            secrets.token_hex(8),
            len(events),
            secrets.token_hex(8),
            keep,
            *(stored_event(event) for event in events),
            *_idempotency(events),
        )
        if reply[0] == "gone":
            raise _erased()
        if reply[0] == "ok":
            log.warning("log.restored", conversation=conversation_id, events=len(events))


def _erased() -> Erased:
    return Erased("this conversation was erased: begin a new one")


def _idempotency(events: list[Event]) -> list[str]:
    pairs: list[str] = []
    for event in events:
        client_id = event.data.get("client_message_id")
        if client_id:
            role = "note" if event.type == "note.created" else str(event.data["role"])
            field = keys.ID_FIELD.format(role=role, client_id=client_id)
            pairs += [field, str(event.offset)]
    return pairs
