"""What can be in a conversation's log. Values only: frozen, no I/O.

An event is stored as JSON under its offset. ``offset`` starts at 1 and is contiguous within an
``epoch``. The visitor's view of the log leaves out the staff-only types.
"""

from dataclasses import dataclass
from typing import Any, Literal, NewType, get_args

ConversationId = NewType("ConversationId", str)
ReplyId = NewType("ReplyId", str)
VisitorId = NewType("VisitorId", str)

Status = Literal["bot", "waiting", "human", "closed"]
FactSource = Literal["page", "form", "identity"]
ReplyEnd = Literal["end", "length", "stopped", "handoff"]

EventType = Literal[
    # {role: visitor|agent, text, client_message_id, author}; an agent's that began as a draft also
    # has ``suggestion``: {suggestions_id, upto, version, draft (with its text)}. What was spoken in
    # a call has ``spoken_at`` (Unix ms), and perhaps ``late``: its place is before the event at
    # that offset, and it neither asks nor answers (lua/utterance.lua)
    "message.created",
    # {reply_id, text, finish_reason: ReplyEnd, version, upto, usage, confidence, seconds};
    # ``upto``: the reply answers the log up to this offset (later messages were not yet read)
    "reply.completed",
    "reply.failed",  # {reply_id, text (what was shown), version, upto, reason}
    "status.changed",  # {status, previous, reason, actor, agent (who holds it now, or "")}
    "rating.given",  # {score 1..5, comment}
    "note.created",  # {text, author, client_message_id}; staff only
    # {facts: {name: value}, source: page|form|identity, client_message_id}; staff only. Only
    # ``identity`` is vouched for: the others are what a browser says
    "visitor.described",
    "tags.changed",  # {tags (all of them, sorted), actor}; staff only
    # drafts that an agent saw: {suggestions_id, upto, version, drafts, actor}; staff only
    "suggestions.shown",
    # {suggestions_id, upto, version, draft, actor}; staff only
    "suggestion.rejected",
    # an agent took a draft for what they say elsewhere, e.g. on the phone: {suggestions_id, upto,
    # version, draft, text (as they changed it), actor}; staff only
    "suggestion.accepted",
    # a conversation that lives elsewhere: {channel: call|chatwoot, external: {..}, language,
    # attributes, actor}; staff only, the first event
    "channel.opened",
    # a reply went to where the conversation lives: {upto (its offset), outcome}; staff only
    "reply.forwarded",
]
# What staff add beside the talk. It neither answers nor asks anything.
StaffEvent = Literal[
    "tags.changed",
    "suggestions.shown",
    "suggestion.rejected",
    "suggestion.accepted",
    "channel.opened",
    "reply.forwarded",
]
STAFF_ONLY: frozenset[str] = frozenset({"note.created", "visitor.described", *get_args(StaffEvent)})


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log. ``at`` is Unix time in milliseconds, the store's clock."""

    offset: int
    type: EventType
    at: int
    data: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        """The frame that clients get, e.g. ``{"type": "reply.completed", "offset": 7, ...}``."""
        return {"type": self.type, "offset": self.offset, "at": self.at, **self.data}


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a conversation after its last event."""

    conversation_id: ConversationId
    epoch: str
    offset: int  # of the last event; 0 when empty
    status: Status
    site: str
    visitor: VisitorId
    agent: str  # name of the agent who holds it while status is human, else ""
    kind: Literal["chat", "playground"]
    pinned_version: str  # playground: the version that answers; "" means the live one
    created_at: int  # Unix ms
    updated_at: int  # Unix ms
    recorded: int = 0  # the record has the events up to this offset
    asked: int = 0  # offset of the visitor's last message
    answered: int = 0  # the log is answered up to this offset

    @property
    def question(self) -> int | None:
        """Offset of the visitor's last message, if nobody has answered it yet."""
        return self.asked if self.asked > self.answered else None


@dataclass(frozen=True, slots=True)
class LiveReply:
    """A reply that is being written. ``text`` is all that was streamed so far."""

    reply_id: ReplyId
    version: str
    text: str


@dataclass(frozen=True, slots=True)
class Partial:
    """What a recogniser believes so far of one utterance. ``at``: when it was said, Unix ms."""

    id: str
    speaker: Literal["visitor", "agent"]
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Outcome of appending a message: its offset, and whether it was there already."""

    offset: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one reply. ``fence`` rises with each attempt; the store refuses writes
    that carry an older one."""

    conversation_id: ConversationId
    reply_id: ReplyId
    fence: int
    attempt: int
    streamed: str  # text that an earlier attempt already streamed: continue after it
    upto: int  # the reply answers the log up to this offset
    job_id: str
    waited: float = 0.0  # seconds since the job was enqueued, by the store's clock
    trace: str = ""  # W3C traceparent of the visitor's message that asked last
