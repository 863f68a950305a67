"""Drafts on their way to a desk: asked for when a question is open, sent as they grow, withdrawn
when the conversation moved on. While the store is away there are none."""

from contextlib import suppress
from typing import Any

from chatbot import protocol
from chatbot.assist.board import AssistBoard, AssistJob, DraftSet
from chatbot.assist.drafts import Draft
from chatbot.conversation.events import ConversationId, Head
from chatbot.conversation.interface import ConversationLog
from chatbot.errors import Conflict, FrontdeskError
from chatbot.server.sockets import Peer


class DeskAssist:
    """The drafts of one conversation that a desk follows."""

    def __init__(self, peer: Peer, user: str, conversation_id: ConversationId) -> None:
        self._peer = peer
        self._user = user
        self._id = conversation_id
        self._board = AssistBoard(peer.room.services.redis)
        self._question: int | None = None  # the one that drafts are shown for
        self._shown: DraftSet | None = None

    async def look(self, head: Head) -> None:
        """The conversation changed: ask for drafts of a new question, withdraw those of an old
        one. Nobody drafts while the bot answers, or for what a colleague holds."""
        ours = head.status == "waiting" or (head.status == "human" and head.agent == self._user)
        question = head.question if ours else None
        if question == self._question:
            return
        if self._shown is not None:
            await self._peer.send(protocol.suggestions_withdrawn(self._id, self._shown.id))
        self._question, self._shown = question, None
        if question is not None:
            with suppress(FrontdeskError):
                await self._board.ask(AssistJob(self._id, question))
            await self.news()

    async def news(self) -> None:
        """The board has something: send it if it is for the open question."""
        found: DraftSet | None = None
        with suppress(FrontdeskError):
            found = await self._board.get(self._id)
        if found is None or found.upto != self._question or found == self._shown:
            return
        self._shown = found
        await self._peer.send(protocol.suggestions(self._id, found.to_wire()))


async def find_set(board: AssistBoard, name: ConversationId, suggestions_id: str) -> DraftSet:
    """A draft set that is still on the board. Raises Conflict: another took its place."""
    found = await board.get(name)
    if found is None or found.id != suggestions_id:
        raise Conflict("the conversation has moved on: this draft is withdrawn")
    return found


def find_draft(found: DraftSet, draft_id: str) -> Draft:
    """Raises Conflict: it is not in the set."""
    draft = found.draft(draft_id)
    if draft is None:
        raise Conflict("this draft was replaced by a better one: look again")
    return draft


def fate(found: DraftSet, **what: Any) -> dict[str, Any]:
    """What an event says of the set that a draft was in."""
    return {
        "suggestions_id": found.id,
        "upto": found.upto,
        "version": found.version,
        **what,
    }


async def note_fates(
    log: ConversationLog,
    name: ConversationId,
    found: DraftSet,
    actor: str,
    *,
    displayed: bool,
    rejected: str | None,
) -> None:
    """Note once that the drafts were seen, or that one was turned down."""
    if displayed:
        data = fate(found, drafts=[draft.to_wire() for draft in found.drafts], actor=actor)
        await log.append_staff_event(name, "suggestions.shown", data, f"shown.{found.id}.{actor}")
    if rejected is not None:
        data = fate(found, draft=find_draft(found, rejected).to_wire(), actor=actor)
        await log.append_staff_event(
            name, "suggestion.rejected", data, f"rejected.{found.id}.{rejected}"
        )
