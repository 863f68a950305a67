"""What of one conversation Chatwoot lacks, brought there in its order."""

from typing import Protocol

import structlog

from chatbot.conversation.events import ConversationId, Event
from chatbot.server.chatwoot.client import Chatwoot, Refused, Unreached, Unsure
from chatbot.server.chatwoot.sent import forwarded

log = structlog.get_logger()
SENDING = "fd:chatwoot:sending:{cid}:{offset}"  # when it was sent last; the answer is not known yet


class Notes(Protocol):
    """What must outlive this process."""

    pause: float  # seconds until another look
    echo_seconds: float  # so long a message may take to come back as a webhook

    async def sent_before(self, key: str) -> float | None: ...

    async def mark(self, key: str) -> None: ...

    async def unmark(self, key: str) -> None: ...

    async def note(self, name: ConversationId, offset: int, outcome: str) -> None: ...


class Sending:
    """Use once: :meth:`run`."""

    def __init__(
        self, of: Notes, chatwoot: Chatwoot, name: ConversationId, events: list[Event]
    ) -> None:
        self._of = of
        self._chatwoot = chatwoot
        self._name = name
        self._events = events
        opened = next(event for event in events if event.type == "channel.opened")
        self._conversation = int(opened.data["external"]["conversation"])

    async def run(self) -> float | None:
        """Seconds after which to look again; None: all is there. Raises Unreached."""
        done = forwarded(self._events)
        for event in self._events:
            if event.offset in done or not _goes_out(event):
                continue
            if self._taken_over(event):
                outcome: str | None = "withheld"  # people are there: the bot is silent
            elif event.type == "reply.completed":
                outcome = await self._reply(event)
            else:
                outcome = await self._hand_over()
            if outcome is None:
                return self._of.pause
            await self._of.note(self._name, event.offset, outcome)
        return None

    def _taken_over(self, event: Event) -> bool:
        gone = {"human", "closed"}
        if event.type == "status.changed":
            gone.add("bot")  # it was given back before anybody there knew
        return any(
            later.offset > event.offset
            and later.type == "status.changed"
            and later.data["status"] in gone
            for later in self._events
        )

    async def _reply(self, event: Event) -> str | None:
        """The outcome; None: not known yet."""
        text = str(event.data["text"])
        key = SENDING.format(cid=self._name, offset=event.offset)
        age = await self._of.sent_before(key)
        if age is not None:
            there = await self._chatwoot.has(self._conversation, text, self._question(event))
            if there:
                return "sent"
            if there is None:
                return await self._give_up(age)
        await self._of.mark(key)
        try:
            await self._chatwoot.send(self._conversation, text)
        except Unreached:
            await self._of.unmark(key)
            raise
        except Unsure as error:
            log.warning("chatwoot.unsure", conversation=self._name, error=str(error))
            return None
        except Refused as error:
            log.warning("chatwoot.refused", conversation=self._name, error=str(error))
            return "refused"
        return "sent"

    async def _give_up(self, age: float) -> str | None:
        if age < self._of.echo_seconds:
            return None  # it may come back as a webhook
        await self._hand_over()
        return "unknown"

    async def _hand_over(self) -> str:
        try:
            await self._chatwoot.hand_over(self._conversation)
        except Unsure as error:
            raise Unreached(str(error)) from error  # again is no harm
        except Refused:
            return "refused"
        return "sent"

    def _question(self, reply: Event) -> int:
        """Chatwoot's number of the message that a reply answers."""
        asked = [
            event.data["client_message_id"]
            for event in self._events
            if event.type == "message.created"
            and event.data["role"] == "visitor"
            and event.offset <= int(reply.data["upto"])
        ]
        return int(asked[-1].removeprefix("cw-")) if asked else 0


def _goes_out(event: Event) -> bool:
    """A whole reply with words, or the bot asking for people."""
    if event.type == "reply.completed":
        return bool(event.data["text"].strip()) and event.data["finish_reason"] != "handoff"
    return event.type == "status.changed" and event.data["status"] == "waiting"
