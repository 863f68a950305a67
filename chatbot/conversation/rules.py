"""The turns of a conversation: who may hold it next, and whether the bot owes an answer. Pure.

``bot`` answers by itself; ``waiting`` is in the queue for people; ``human`` is held by one agent;
``closed`` is over until the visitor writes again or an agent takes it up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

from chatbot.conversation.events import Event, Status
from chatbot.errors import Conflict, InputError

STATUSES: tuple[Status, ...] = ("bot", "waiting", "human", "closed")

# from -> to -> what the move is
MOVES: dict[Status, dict[Status, str]] = {
    "bot": {
        "waiting": "the visitor asked for people, or a reply failed",
        "human": "an agent takes it over",
        "closed": "it is over",
    },
    "waiting": {
        "bot": "staff give it to the bot",
        "human": "an agent claims it",
        "closed": "it is over",
    },
    "human": {
        "bot": "the agent gives it back to the bot",
        "human": "the agent who holds it hands it to a colleague",
        "waiting": "the agent who holds it puts it back into the queue",
        "closed": "it is over",
    },
    "closed": {
        "bot": "the visitor wrote again",
        "human": "an agent takes it up again",
    },
}


def check_move(
    status: Status, holder: str, target: Status, agent: str, actor: str = ""
) -> Literal["move", "nothing"]:
    """Whether ``actor`` may take a conversation from ``status`` (held by ``holder`` while human)
    to ``target``. ``agent`` is who will hold it, or who puts it back into the queue. ``nothing``:
    it is there already, e.g. a click that was sent twice.

    Raises:
        InputError: ``human`` without an agent, or an unknown status.
        Conflict: not legal now; says who holds it.
    """
    if target not in STATUSES:
        raise InputError(f"{target!r} is not a status: one of {', '.join(STATUSES)}")
    if target == "human" and not agent:
        raise InputError("a conversation is held by a named agent")
    if status == target:
        if target != "human" or agent == holder:
            return "nothing"
        if actor != holder:
            raise Conflict(f"{holder} holds this conversation: it must be released first")
        return "move"
    if target not in MOVES[status]:
        raise Conflict(f"a conversation that is {status} cannot become {target}")
    if status == "human" and target == "waiting" and agent != holder:
        raise Conflict(f"{holder} holds this conversation already")
    return "move"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a log says of whose turn it is. ``asked`` is the offset of the visitor's last message,
    ``answered`` the offset up to which somebody answered."""

    status: Status
    agent: str
    asked: int
    answered: int

    @property
    def bot_owes_reply(self) -> bool:
        return self.status == "bot" and self.asked > self.answered


def turn_after(events: Iterable[Event]) -> Turn:
    """The turn after the last of ``events``: the same as the store keeps step by step, so that a
    log can be rebuilt from the record."""
    status: Status = "bot"
    agent = ""
    asked = answered = 0
    for event in events:
        if event.type == "message.created" and "late" in event.data:
            continue  # it was said before what is already here: it asks and answers nothing
        if event.type == "message.created" and event.data["role"] == "visitor":
            asked = event.offset
        elif event.type == "message.created":
            answered = max(answered, event.offset)
        elif event.type == "reply.completed":
            cut_empty = event.data["finish_reason"] == "handoff" and not event.data["text"]
            if not cut_empty:
                answered = max(answered, int(event.data.get("upto", event.offset)))
        elif event.type == "status.changed":
            status = cast(Status, event.data["status"])
            agent = str(event.data.get("agent", ""))
    return Turn(status, agent, asked, answered)
