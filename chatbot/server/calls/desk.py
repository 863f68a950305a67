"""What is done to calls, by whichever way it was asked: begin, hear, give feedback, close."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from chatbot.assist.board import AssistBoard, AssistJob
from chatbot.conversation.events import ConversationId, Head, Partial, VisitorId
from chatbot.errors import Conflict, ConversationFull, FrontdeskError, NotAllowed, RequestRefused
from chatbot.protocol import check_text
from chatbot.server.auth import signer_of
from chatbot.server.calls.access import Caller
from chatbot.server.calls.schema import AcceptedDraft, CallBegin, Feedback, Fragment
from chatbot.server.channels import call_id, is_call, nobody_of
from chatbot.server.desk_assist import fate, find_draft, find_set, note_fates
from chatbot.server.sites import get_site
from chatbot.server.state import Room

AHEAD_MS = 300_000  # a recogniser's clock may be wrong by so much; one in the future hides the rest
ROLES = {"customer": "visitor", "agent": "agent"}


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a fragment: ``kept``, ``duplicate`` (of a final), ``stale`` (a later partial
    is shown), ``final`` (a partial whose utterance is final). ``offset`` of a final in the log."""

    id: str
    outcome: str
    offset: int | None

    def to_wire(self) -> dict[str, Any]:
        return {"id": self.id, "outcome": self.outcome, "offset": self.offset}


class CallDesk:
    """One per server process."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._services = room.services
        self._settings = room.services.settings
        self._log = room.services.log
        self.board = AssistBoard(room.services.redis)

    async def begin(self, who: Caller, asked: CallBegin) -> tuple[Head, bool]:
        """The call, and whether it is new. People hold it from the start: the bot is silent. A
        member of staff who begins a colleague's call takes it over; others find it as it is.

        Raises:
            NotAllowed: another site's key, or there is no such site.
            RateLimited
        """
        who.may_begin(asked.site)
        if who.agent is not None and asked.agent != who.agent:
            raise NotAllowed(f"you are {who.agent}: begin a call in your own name")
        await asyncio.to_thread(get_site, self._services.database, asked.site)
        name = call_id(self._services.secret_key, asked.site, asked.call_id)
        head = await self._log.head(name)
        if head is not None and head.status != "bot":
            return await self._take_over(who, head), False
        await self._room.call_rate.take(asked.site, "calls begun of this site")
        await self._log.create(name, site=asked.site, visitor=self._customer(name, asked))
        opened = {
            "channel": "call",
            "external": {"call_id": asked.call_id},
            "language": asked.language,
            "attributes": asked.attributes,
            "actor": who.actor,
        }
        await self._log.append_staff_event(name, "channel.opened", opened, "channel.opened")
        head = await self._log.change_status(
            name, "human", reason="call", actor=asked.agent, agent=asked.agent
        )
        return head, True

    async def _take_over(self, who: Caller, head: Head) -> Head:
        if who.agent in (None, head.agent) or head.status != "human":
            return head
        assert who.agent is not None
        return await self._log.change_status(
            head.conversation_id,
            "human",
            reason="taken over in the panel",
            actor=head.agent,
            agent=who.agent,
        )

    def _customer(self, name: ConversationId, asked: CallBegin) -> VisitorId:
        if asked.customer is None:
            return nobody_of(name)
        return VisitorId(signer_of(self._services).visitor_id(asked.site, asked.customer))

    async def hear(self, who: Caller, head: Head, fragments: list[Fragment]) -> list[Heard]:
        """Take fragments, in the order of their times; what became of each, in the given order.
        All are checked before the first is taken.

        Raises:
            NotAllowed, RequestRefused, MessageTooLong, ConversationFull, RateLimited
            Conflict: the call is over; finals before that were kept.
        """
        who.may_speak()
        if not is_call(head.conversation_id):
            raise NotAllowed("what is said in Chatwoot comes from Chatwoot")
        if who.agent is not None and who.agent != head.agent:
            raise NotAllowed(f"{head.agent} is in this call: only they may add to it")
        await self._check(head, fragments)
        name = head.conversation_id
        await self._room.fragment_rate.take(name, "fragments of this call", len(fragments))
        order = sorted(range(len(fragments)), key=lambda at: fragments[at].at)
        heard = {at: await self._take(name, fragments[at]) for at in order}
        if any(fragment.final for fragment in fragments):
            await self.ask(name)
        return [heard[at] for at in range(len(fragments))]

    async def _check(self, head: Head, fragments: list[Fragment]) -> None:
        most = self._settings.call_fragments_per_request
        if len(fragments) > most:
            raise RequestRefused(
                f"{len(fragments)} fragments at once: at most {most}",
                limit="call_fragments_per_request",
            )
        now = await self._log.now_ms()
        for fragment in fragments:
            check_text(fragment.text, self._settings.max_message_chars)
            if fragment.at > now + AHEAD_MS:
                raise RequestRefused(f"fragment {fragment.id}: at is in the future (Unix ms)")
        finals = sum(fragment.final for fragment in fragments)
        if head.offset + finals > self._settings.max_conversation_events:
            raise ConversationFull(
                f"this call has {head.offset} events, at most "
                f"{self._settings.max_conversation_events} are kept: close it and begin another",
                limit="max_conversation_events",
            )

    async def _take(self, name: ConversationId, fragment: Fragment) -> Heard:
        speaker = "agent" if fragment.speaker == "agent" else "visitor"
        if not fragment.final:
            outcome = await self._log.put_partial(
                name,
                Partial(fragment.id, speaker, fragment.text, fragment.at),  # type: ignore[arg-type]
                keep_seconds=self._settings.call_partial_seconds,
                most=self._settings.call_open_partials,
            )
            return Heard(fragment.id, outcome, None)
        accepted = await self._log.append_utterance(
            name,
            speaker=speaker,  # type: ignore[arg-type]
            text=fragment.text,
            utterance_id=fragment.id,
            spoken_at=fragment.at,
        )
        if not accepted.duplicate:
            self._room.metrics.message(speaker)
        return Heard(fragment.id, "duplicate" if accepted.duplicate else "kept", accepted.offset)

    async def ask(self, name: ConversationId) -> None:
        """Ask for drafts of the open question, if there is one that nobody asked for yet. Drafts
        are help: what was heard is kept, whether or not they can be asked for."""
        with suppress(FrontdeskError):
            head = await self._log.head(name)
            waits = head is not None and head.status in ("human", "waiting")
            if head is not None and waits and head.question is not None:
                await self.board.ask(AssistJob(name, head.question))

    async def feedback(self, who: Caller, head: Head, said: Feedback) -> None:
        """Note what became of drafts, each fate once.

        Raises:
            Conflict: the call has moved on.
        """
        name, actor = head.conversation_id, who.agent or head.agent
        found = await find_set(self.board, name, said.suggestions_id)
        await note_fates(
            self._log, name, found, actor, displayed=said.displayed, rejected=said.rejected
        )
        if said.accepted is not None:
            await self._accept(name, actor, said.suggestions_id, said.accepted)

    async def _accept(
        self, name: ConversationId, actor: str, suggestions_id: str, accepted: AcceptedDraft
    ) -> None:
        text = check_text(accepted.text, self._settings.max_message_chars)
        found = await find_set(self.board, name, suggestions_id)
        draft = find_draft(found, accepted.draft_id)
        now = await self._log.head(name)
        if now is None or now.question != found.upto:
            raise Conflict("the conversation has moved on: this draft is withdrawn")
        data = fate(found, draft=draft.to_wire(), text=text, actor=actor)
        await self._log.append_staff_event(
            name, "suggestion.accepted", data, f"accepted.{found.id}.{draft.id}"
        )

    async def close(self, who: Caller, head: Head, reason: str) -> Head:
        """End the call; one that is over stays as it ended. Raises NotAllowed."""
        who.may_speak()
        if not is_call(head.conversation_id):
            raise NotAllowed("a conversation of Chatwoot ends there")
        if who.agent is not None and who.agent != head.agent and head.status != "closed":
            raise NotAllowed(f"{head.agent} is in this call: only they may close it")
        return await self._log.change_status(
            head.conversation_id, "closed", reason=reason, actor=head.agent or who.actor
        )
