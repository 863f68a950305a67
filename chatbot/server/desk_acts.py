"""What an agent does to conversations: claim, hand over, give back, close, write, tag."""

import asyncio
from typing import Any

from chatbot import protocol
from chatbot.assist.board import AssistBoard
from chatbot.conversation.events import Accepted, ConversationId, Status
from chatbot.errors import Conflict, InputError
from chatbot.server.auth import StaffClaims
from chatbot.server.channels import CHATWOOT, is_call
from chatbot.server.desk_assist import fate, find_draft, find_set, note_fates
from chatbot.server.staff import find_staff
from chatbot.server.state import Room


class DeskActs:
    """The acts of one agent. Each may raise Conflict, when it is not legal now; its text says why
    and may be shown."""

    def __init__(self, room: Room, claims: StaffClaims) -> None:
        self._room = room
        self._log = room.services.log
        self._user = claims.username
        self._role = claims.role
        self._board = AssistBoard(room.services.redis)

    async def claim(self, name: ConversationId) -> None:
        await self._move(name, "human", "claimed", agent=self._user)

    async def release(self, name: ConversationId) -> None:
        """Give it to the bot. The change of status is the boundary in the log: what was said of
        people before it is no part of what the bot reads (conversation/transcript.py).

        Raises:
            Conflict: a call, in which the bot has no voice.
        """
        if is_call(name):
            raise Conflict("this is a call: the bot cannot speak in it")
        await self._move(name, "bot", "released")

    async def close(self, name: ConversationId, reason: str) -> None:
        await self._move(name, "closed", reason or "closed")

    async def transfer(self, name: ConversationId, agent: str, reason: str) -> None:
        """Hand it to a colleague; without one, back into the queue.

        Raises:
            InputError: there is no such account.
            Conflict: this agent does not hold it.
        """
        database = self._room.services.database
        if agent and await asyncio.to_thread(find_staff, database, agent) is None:
            raise InputError(f"there is no agent {agent}")
        _not_elsewhere(name)
        if not agent and is_call(name):
            raise Conflict("this is a call: hand it to a colleague, it cannot wait in the queue")
        head = await self._log.head(name)
        if head is None or head.status != "human" or head.agent != self._user:
            raise Conflict("only who holds a conversation can hand it over: take it over first")
        await self._log.change_status(
            name,
            "human" if agent else "waiting",
            reason=reason or ("transferred" if agent else f"{self._user} put it back"),
            actor=self._user,
            agent=agent or self._user,
        )

    async def tag(self, name: ConversationId, tags: list[str]) -> None:
        """Set all tags. Case and white space do not tell two tags apart."""
        wanted = sorted({" ".join(tag.split()).casefold() for tag in tags} - {""})
        await self._log.append_staff_event(
            name, "tags.changed", {"tags": wanted, "actor": self._user}
        )

    async def write(self, frame: protocol.AgentSend | protocol.NoteAdd) -> Accepted:
        text = protocol.check_text(frame.text, self._room.services.settings.max_message_chars)
        name = ConversationId(frame.conversation_id)
        if isinstance(frame, protocol.AgentSend):
            _not_elsewhere(name)
            accepted = await self._log.append_message(
                name,
                role="agent",
                text=text,
                client_message_id=frame.client_message_id,
                author=self._user,
                suggestion=await self._suggestion(name, frame.suggestion),
            )
        else:
            accepted = await self._log.append_note(
                name, text=text, author=self._user, client_message_id=frame.client_message_id
            )
        if not accepted.duplicate:
            self._room.metrics.message("agent" if frame.type == "message.send" else "note")
        return accepted

    async def _suggestion(
        self, name: ConversationId, ref: protocol.SuggestionRef | None
    ) -> dict[str, Any] | None:
        if ref is None:
            return None
        found = await find_set(self._board, name, ref.suggestions_id)
        return fate(found, draft=find_draft(found, ref.draft_id).to_wire())

    async def feedback(self, frame: protocol.SuggestionFeedback) -> None:
        """Note once that the drafts were seen, or that one was turned down."""
        name = ConversationId(frame.conversation_id)
        found = await find_set(self._board, name, frame.suggestions_id)
        await note_fates(
            self._log,
            name,
            found,
            self._user,
            displayed=frame.displayed,
            rejected=frame.rejected,
        )

    async def _move(
        self, name: ConversationId, status: Status, reason: str, agent: str = ""
    ) -> None:
        _not_elsewhere(name)
        head = await self._log.head(name)
        others = head is not None and head.status == "human" and head.agent != self._user
        # an administrator may end what a colleague who has gone home still holds
        if head is not None and others and (self._role != "admin" or status == "human"):
            raise Conflict(f"{head.agent} holds this conversation", agent=head.agent)
        await self._log.change_status(name, status, reason=reason, actor=self._user, agent=agent)


def _not_elsewhere(name: ConversationId) -> None:
    """Raises Conflict: its words and its holder are Chatwoot's."""
    if name.startswith(CHATWOOT):
        raise Conflict("this conversation is in Chatwoot: take it over and answer there")
