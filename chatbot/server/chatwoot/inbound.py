"""From Chatwoot into the log. A conversation there is one here: ``pending`` is the bot's, ``open``
and ``snoozed`` people's, ``resolved`` is closed. Everything may come twice and changes nothing
then."""

from contextlib import suppress
from typing import Any

import structlog

from chatbot.conversation.events import ConversationId, Head, Status, VisitorId
from chatbot.errors import Conflict, NotAllowed, NotFound, Overloaded
from chatbot.server.auth import signer_of
from chatbot.server.channels import chatwoot_id
from chatbot.server.chatwoot.config import ChatwootSite
from chatbot.server.chatwoot.payload import (
    Conversation,
    Message,
    Person,
    read_conversation,
    read_message,
)
from chatbot.server.chatwoot.sent import forwarded, note_forwarded
from chatbot.server.limits import limit_of
from chatbot.server.state import Room

log = structlog.get_logger()
ACTOR = "chatwoot"
MOVES = ("conversation_opened", "conversation_resolved", "conversation_status_changed")
STATUS: dict[str, Status] = {
    "pending": "bot",
    "open": "human",
    "snoozed": "human",
    "resolved": "closed",
}


class Inbound:
    """The webhooks of one site."""

    def __init__(self, room: Room, site: str, config: ChatwootSite) -> None:
        self._room = room
        self._services = room.services
        self._log = room.services.log
        self._site = site
        self._config = config

    async def take(self, event: str, body: Any) -> str:
        """What became of it: taken, or ignored. Raises RequestRefused, NotAllowed."""
        if event == "message_created":
            return await self._message(read_message(body))
        if event in MOVES:
            return await self._move(read_conversation(body))
        return "ignored"

    def _name(self, conversation: Conversation) -> ConversationId:
        return chatwoot_id(
            self._services.secret_key, self._site, self._config.account, conversation.id
        )

    async def _move(self, conversation: Conversation) -> str:
        head = await self._log.head(self._name(conversation))
        if head is None:
            return "ignored"  # nobody has said anything in it yet
        await self._follow(head.conversation_id, conversation)
        return "taken"

    async def _message(self, message: Message) -> str:
        if message.account is not None and message.account.id != self._config.account:
            raise NotAllowed(f"the site {self._site} is of another account of Chatwoot")
        by_person = message.sender is not None and message.sender.type == "user"
        if message.message_type == "incoming" and not message.private:
            return await self._from_customer(message)
        if message.message_type == "outgoing" and by_person:
            return await self._from_agent(message)
        if message.message_type == "outgoing":
            await self._echo(message)
        return "ignored"

    async def _from_customer(self, message: Message) -> str:
        name = await self._opened(message)
        # a message that comes to a resolved conversation opens it again: Chatwoot says so next
        if message.conversation.status != "resolved" and await self._newest(name, message):
            await self._follow(name, message.conversation)
        text = (message.content or "").strip()
        await self._check_bot(name, text)
        if not text:
            return "taken"
        most = self._services.settings.max_message_chars
        accepted = await self._log.append_message(
            name,
            role="visitor",
            text=text[:most],
            client_message_id=f"cw-{message.id}",
            author=(await self._head(name)).visitor,
        )
        if not accepted.duplicate:
            self._room.metrics.message("visitor")
            self._room.queue.note_message()
        return "taken"

    async def _check_bot(self, name: ConversationId, text: str) -> None:
        """Where the bot may not answer now, or sees nothing, people are asked before the message
        is there: nobody shall wait for it."""
        head = await self._head(name)
        if head.status not in ("bot", "closed"):
            return
        reason = "" if text else "a message without text"
        try:
            await self._room.message_rate.take(f"{head.site}:{head.visitor}", "messages")
            await self._room.budgets.check(head.site, head.visitor)
            await self._room.queue.check()
        except Overloaded as problem:
            self._room.metrics.limited(limit_of(problem))
            reason = str(problem)
        if not reason:
            return
        if head.status == "closed":  # from there only the bot can be asked
            await self._log.change_status(name, "bot", reason="it goes on", actor=ACTOR)
        with suppress(Conflict):  # people have it already
            await self._log.change_status(name, "waiting", reason=reason, actor=ACTOR)

    async def _from_agent(self, message: Message) -> str:
        text, name = (message.content or "").strip(), await self._opened(message)
        agent = _agent(message.sender)
        if text and message.private:
            await self._log.append_note(
                name, text=text, author=agent, client_message_id=f"cw-{message.id}"
            )
        elif text and message.id not in await self._known(name):
            fresh = await self._newest(name, message)
            await self._hold(name, agent)
            await self._log.append_message(
                name,
                role="agent",
                text=text,
                client_message_id=f"cw-{message.id}",
                author=agent,
            )
            if fresh:
                await self._follow(name, message.conversation)
        return "taken"

    async def _echo(self, message: Message) -> None:
        """Our own reply, as Chatwoot has it: proof that it arrived, whatever its answer said."""
        name = self._name(message.conversation)
        if await self._log.head(name) is None:
            return
        events = await self._log.read(name)
        done, text = forwarded(events), (message.content or "").strip()
        for event in events:
            waits = event.type == "reply.completed" and event.offset not in done
            if waits and event.data["text"].strip() == text:
                await note_forwarded(self._services, name, event.offset, "sent")
                return

    async def _opened(self, message: Message) -> ConversationId:
        """The conversation, begun if it is new."""
        name = self._name(message.conversation)
        head = await self._log.head(name)
        if head is not None and head.offset > 0:
            return name
        contact = message.conversation.meta.sender or message.sender or Person()
        whose = f"chatwoot:{self._config.account}:{contact.id or message.conversation.id}"
        visitor = VisitorId(signer_of(self._services).visitor_id(self._site, whose))
        await self._log.create(name, site=self._site, visitor=visitor)
        opened = {
            "channel": "chatwoot",
            "external": {
                "account": self._config.account,
                "conversation": message.conversation.id,
            },
            "language": None,
            "attributes": {"name": contact.name[:500]} if contact.name else {},
            "actor": ACTOR,
        }
        await self._log.append_staff_event(name, "channel.opened", opened, "channel.opened")
        return name

    async def _head(self, name: ConversationId) -> Head:
        head = await self._log.head(name)
        if head is None:
            raise NotFound("this conversation was erased meanwhile")
        return head

    async def _known(self, name: ConversationId) -> set[int]:
        """Chatwoot's numbers of the messages that are here."""
        ids = (str(e.data.get("client_message_id", "")) for e in await self._log.read(name))
        return {int(found.removeprefix("cw-")) for found in ids if found.startswith("cw-")}

    async def _newest(self, name: ConversationId, message: Message) -> bool:
        """Whether the conversation's state in this webhook is not older than what is known: one
        that comes again, or late, must not give the conversation back and forth."""
        return message.id > max(await self._known(name), default=0)

    async def _follow(self, name: ConversationId, conversation: Conversation) -> None:
        """Give it to whom Chatwoot gave it. A change of status is the boundary that the bot's
        reading of the log leaves out, so what people said of people does not linger."""
        head, wanted = await self._head(name), STATUS[conversation.status]
        if wanted == "human":
            await self._hold(name, _agent(conversation.meta.assignee), keep=True)
        elif wanted == head.status or (wanted == "bot" and await self._handing_over(head)):
            return
        else:
            await self._log.change_status(
                name, wanted, reason=f"{conversation.status} in Chatwoot", actor=ACTOR
            )

    async def _handing_over(self, head: Head) -> bool:
        """Whether the bot asked for people and Chatwoot does not know it yet: its ``pending`` is
        older than that."""
        if head.status != "waiting":
            return False
        events = await self._log.read(head.conversation_id)
        asked = [event.offset for event in events if event.type == "status.changed"]
        return asked[-1] not in forwarded(events)

    async def _hold(self, name: ConversationId, agent: str, *, keep: bool = False) -> None:
        """Let an agent of Chatwoot hold it; ``keep``: unless another one does already."""
        head = await self._head(name)
        if head.status == "human" and (keep or head.agent == agent):
            return
        actor = head.agent if head.status == "human" else agent
        await self._log.change_status(
            name, "human", reason="open in Chatwoot", actor=actor, agent=agent
        )


def _agent(person: Person | None) -> str:
    """How an agent of Chatwoot is named here: no account of ours has such a name."""
    name = (person.name or "").strip() if person is not None else ""
    return f"{name[:50]} (Chatwoot)" if name else "(Chatwoot)"
