"""The websocket wire of the visitor's chat (``/v1/chat``) and the agent's desk (``/v1/desk``).

JSON text frames, each an object with a ``type``. This module is pure: it parses and builds frames
and knows which frame is legal in which state; it does no I/O. Schema version is in the path.

A socket goes ``awaiting_hello -> open -> closed``. Frames that come from the log carry ``offset``;
a client keeps the last ``(epoch, offset)`` and sends it in its next ``hello``. Frames of a reply
that is being written carry ``from_char`` instead, a position in Unicode code points.

On the desk's socket every frame about a conversation also carries its ``conversation_id``.
"""

import json
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from chatbot.errors import (
    FrontdeskError,
    MessageTooLong,
    Overloaded,
    ProtocolViolation,
    RequestRefused,
    StorageFull,
    StoreUnavailable,
)

# -- close codes (RFC 6455 section 7.4: 4000-4999 are the application's)


class CloseCode(IntEnum):
    """Why the server closed a socket. 4xxx codes are ours; clients act on them."""

    NORMAL = 1000  # the client said goodbye
    GOING_AWAY = 1001  # the server restarts: reconnect at once
    INVALID_TEXT = 1007  # a text frame that is not UTF-8
    TOO_BIG = 1009  # a frame larger than the limit
    INTERNAL = 1011  # our fault; the reason is empty on purpose: reconnect with back-off
    TRY_AGAIN_LATER = 1013  # a store is away: reconnect with back-off
    PROTOCOL = 4400  # frames malformed or out of order: a bug of the client, do not reconnect
    NOT_AUTHENTICATED = 4401  # token missing, wrong or expired: get a new one first
    NOT_ALLOWED = 4403  # origin or conversation is not this visitor's: do not reconnect
    HELLO_TIMEOUT = 4408  # no hello within the time allowed
    LOG_RESET = 4409  # the log has a new epoch: reconnect and reload
    ERASED = 4410  # the visitor was erased: forget the conversation and the token
    SLOW_READER = 4413  # the client did not read fast enough: reconnect and resume
    RATE_LIMITED = 4429  # too many frames: wait, then reconnect


class SocketState(Enum):
    AWAITING_HELLO = "awaiting_hello"
    OPEN = "open"
    CLOSED = "closed"


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Id = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")]
FactName = Annotated[str, Field(min_length=1, max_length=64)]
FactValue = Annotated[str, Field(max_length=500)]

# -- client -> server, visitor


class Hello(_Frame):
    """First frame. Without ``conversation_id`` the visitor's main conversation is resumed, or
    begun if there is none; ``new_conversation`` always begins another one. ``welcome`` names the
    conversation: a client keeps the id and sends it in its next ``hello``."""

    type: Literal["hello"]
    token: str = Field(max_length=4096)
    conversation_id: Id | None = None
    new_conversation: bool = False
    epoch: str | None = Field(None, max_length=64)
    offset: int | None = Field(None, ge=0)


class MessageSend(_Frame):
    type: Literal["message.send"]
    client_message_id: Id
    text: str


class ReplyStop(_Frame):
    type: Literal["reply.stop"]
    reply_id: Id


class Typing(_Frame):
    type: Literal["typing"]


class Ping(_Frame):
    """Answered with ``pong``. A browser cannot see the pings of RFC 6455 section 5.5.2, so this is
    how a page finds out that a socket is half open. Legal on both sockets."""

    type: Literal["ping"]


class HandoffRequest(_Frame):
    type: Literal["handoff.request"]


class RatingGive(_Frame):
    type: Literal["rating.give"]
    score: int = Field(ge=1, le=5)
    comment: str = Field("", max_length=2000)


class VisitorDescribe(_Frame):
    """What the page around the chat says of the visitor (never a proof): staff see it, the model
    does not. Answered with ``message.accepted``."""

    type: Literal["visitor.describe"]
    client_message_id: Id
    facts: dict[FactName, FactValue] = Field(max_length=30)


class ContactLeave(_Frame):
    """The form of the hours in which nobody answers: the message goes to people, not to the bot,
    with an address to answer to. Answered with ``message.accepted``."""

    type: Literal["contact.leave"]
    client_message_id: Id
    name: str = Field("", max_length=100)
    email: str = Field(max_length=254, pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")
    text: str


class PeopleAsk(_Frame):
    """Do people answer now, and when? Answered with ``people.state``."""

    type: Literal["people.ask"]


class ConversationEnd(_Frame):
    """The visitor is done."""

    type: Literal["conversation.end"]


# -- client -> server, desk


class DeskHello(_Frame):
    """First frame of a desk socket; ``token`` is a staff login's."""

    type: Literal["hello"]
    token: str = Field(max_length=4096)


class ConversationWatch(_Frame):
    """Open a conversation in the desk: its events follow from ``offset + 1`` on."""

    type: Literal["conversation.watch"]
    conversation_id: Id
    epoch: str | None = Field(None, max_length=64)
    offset: int | None = Field(None, ge=0)


class ConversationUnwatch(_Frame):
    type: Literal["conversation.unwatch"]
    conversation_id: Id


class ConversationClaim(_Frame):
    type: Literal["conversation.claim"]
    conversation_id: Id


class ConversationRelease(_Frame):
    """Give the conversation back to the bot."""

    type: Literal["conversation.release"]
    conversation_id: Id


class ConversationTransfer(_Frame):
    """Hand a conversation that this agent holds to a colleague, or without one back into the
    queue. Only staff see ``reason``."""

    type: Literal["conversation.transfer"]
    conversation_id: Id
    agent: str = Field("", max_length=64)
    reason: str = Field("", max_length=500)


class TagsSet(_Frame):
    """All tags of the conversation from now on; staff see them, the visitor never does."""

    type: Literal["tags.set"]
    conversation_id: Id
    tags: list[Annotated[str, Field(min_length=1, max_length=40)]] = Field(max_length=20)


class ConversationClose(_Frame):
    """End the conversation. The visitor sees ``reason`` too."""

    type: Literal["conversation.close"]
    conversation_id: Id
    reason: str = Field("", max_length=500)


class SuggestionRef(_Frame):
    """A draft of a set, as ``suggestions`` named them."""

    suggestions_id: Id
    draft_id: Id


class AgentSend(_Frame):
    """``suggestion``: the draft that the text began as. It is refused when that answers a question
    that is not the open one any more."""

    type: Literal["message.send"]
    conversation_id: Id
    client_message_id: Id
    text: str
    suggestion: SuggestionRef | None = None


class SuggestionFeedback(_Frame):
    """What became of drafts: the agent saw the set (``displayed``), or turned one down
    (``rejected``). One that is sent says so in ``message.send``."""

    type: Literal["suggestion.feedback"]
    conversation_id: Id
    suggestions_id: Id
    displayed: bool = False
    rejected: Id | None = None


class NoteAdd(_Frame):
    """A private note: staff see it, the visitor and the model never do."""

    type: Literal["note.add"]
    conversation_id: Id
    client_message_id: Id
    text: str


VisitorFrame = Annotated[
    Hello
    | MessageSend
    | ReplyStop
    | Typing
    | Ping
    | HandoffRequest
    | RatingGive
    | VisitorDescribe
    | ContactLeave
    | PeopleAsk
    | ConversationEnd,
    Field(discriminator="type"),
]
DeskFrame = Annotated[
    DeskHello
    | ConversationWatch
    | ConversationUnwatch
    | ConversationClaim
    | ConversationRelease
    | ConversationTransfer
    | ConversationClose
    | TagsSet
    | AgentSend
    | SuggestionFeedback
    | NoteAdd
    | Ping,
    Field(discriminator="type"),
]

STORE_RETRY_SECONDS = 2.0  # when the store is away, clients send again after this long

_EVENT = frozenset({"type", "offset", "at"})
_VISITOR_FIELDS: dict[str, frozenset[str]] = {
    "message.created": _EVENT | {"role", "text", "client_message_id", "author"},
    "reply.completed": _EVENT | {"reply_id", "text", "finish_reason", "version"},
    "reply.failed": _EVENT | {"reply_id", "text"},
    # without the reason: what staff write there is for staff
    "status.changed": _EVENT | {"status", "previous", "actor", "agent"},
    "rating.given": _EVENT | {"score", "comment"},
}

_VISITOR: TypeAdapter[VisitorFrame] = TypeAdapter(VisitorFrame)
_DESK: TypeAdapter[DeskFrame] = TypeAdapter(DeskFrame)


def frame_problem(error: ValidationError) -> str:
    """The first problem of a frame, without anything that the frame holds: it may be somebody's
    words, of any length, and this text is sent and logged."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind = first["type"]
    if kind == "union_tag_invalid":
        return "type: not a frame that may be sent here"
    if kind == "extra_forbidden":
        return "frame: it has a field that this frame does not have"
    where = ".".join(str(part) for part in first["loc"]) or "frame"
    if kind == "json_invalid":
        return f"{where}: not valid JSON"
    return f"{where}: {first['msg']}"


def _parse(adapter: TypeAdapter[Any], text: str, state: SocketState) -> Any:
    try:
        frame = adapter.validate_json(text)
    except ValidationError as error:
        raise ProtocolViolation(frame_problem(error)) from None
    is_hello = frame.type == "hello"
    if state is SocketState.AWAITING_HELLO and not is_hello:
        raise ProtocolViolation(f"expected hello as the first frame, got {frame.type}")
    if state is SocketState.OPEN and is_hello:
        raise ProtocolViolation("hello was already received on this socket")
    if state is SocketState.CLOSED:
        raise ProtocolViolation("the socket is closed")
    return frame


def parse_visitor_frame(text: str, state: SocketState) -> VisitorFrame:
    """Parse one frame from a visitor.

    Raises:
        ProtocolViolation: not JSON, unknown type, wrong field, or not legal in ``state``.
    """
    frame: VisitorFrame = _parse(_VISITOR, text, state)
    return frame


def parse_desk_frame(text: str, state: SocketState) -> DeskFrame:
    """Parse one frame from a desk. Raises as :func:`parse_visitor_frame`."""
    frame: DeskFrame = _parse(_DESK, text, state)
    return frame


def check_text(text: str, max_chars: int) -> str:
    """The text of a message as it is stored.

    Raises:
        RequestRefused: nothing but white space, or a NUL character (SQL cannot keep one).
        MessageTooLong: more than ``max_chars`` code points.
    """
    if not text.strip():
        raise RequestRefused("the message is empty: write something first")
    if "\x00" in text:
        raise RequestRefused("the message holds a NUL character, which cannot be kept")
    if len(text) > max_chars:
        raise MessageTooLong(
            f"the message has {len(text)} characters, at most {max_chars} are allowed: shorten it",
            limit="max_message_chars",
        )
    return text


# -- server -> client. Plain dictionaries: they are built from log events, which are validated.


def encode(frame: dict[str, Any]) -> str:
    """One frame as compact JSON text."""
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":"))


def welcome(
    conversation_id: str,
    epoch: str,
    offset: int,
    recovered: bool,
    status: str,
    events: list[dict[str, Any]],
    live_reply: dict[str, Any] | None,
) -> dict[str, Any]:
    """Answer to hello. ``recovered``: ``events`` are exactly those after the client's offset;
    otherwise they are the whole history and the client replaces what it shows. ``live_reply`` is
    ``{reply_id, version, text}`` when a reply is being written."""
    return {
        "type": "welcome",
        "conversation_id": conversation_id,
        "epoch": epoch,
        "offset": offset,
        "recovered": recovered,
        "status": status,
        "events": events,
        "live_reply": live_reply,
    }


def message_accepted(
    client_message_id: str, offset: int, duplicate: bool, **extra: Any
) -> dict[str, Any]:
    """The message is in the log (and on disk as far as the store promises). It also comes as
    ``message.created``, before or after this frame."""
    return {
        "type": "message.accepted",
        "client_message_id": client_message_id,
        "offset": offset,
        "duplicate": duplicate,
        **extra,
    }


def reply_started(reply_id: str, version: str) -> dict[str, Any]:
    return {"type": "reply.started", "reply_id": reply_id, "version": version}


def reply_delta(reply_id: str, from_char: int, text: str) -> dict[str, Any]:
    """``from_char``: position of ``text`` in the reply, in Unicode code points."""
    return {"type": "reply.delta", "reply_id": reply_id, "from_char": from_char, "text": text}


def people_state(
    is_open: bool, opens_at: int | None, place: int, expected_wait: int | None
) -> dict[str, Any]:
    """``opens_at``: Unix ms. ``place`` in the line, 1 is next. ``expected_wait``: seconds from
    when the wait begins or began; null when too little is known."""
    return {
        "type": "people.state",
        "open": is_open,
        "opens_at": opens_at,
        "place": place,
        "expected_wait": expected_wait,
    }


def pong() -> dict[str, Any]:
    return {"type": "pong"}


# -- server -> desk. Log frames, ``reply.started``, ``reply.delta`` and ``message.accepted`` of a
# watched conversation are the visitor's frames plus ``conversation_id``.


def desk_welcome(username: str, role: str, conversations: list[dict[str, Any]]) -> dict[str, Any]:
    """Answer to a desk's hello: every conversation that is not closed, as ``listed`` gives it."""
    return {
        "type": "welcome",
        "username": username,
        "role": role,
        "conversations": conversations,
    }


def conversation_listed(
    conversation_id: str,
    status: str,
    site: str,
    visitor: str,
    agent: str,
    created_at: int,
    updated_at: int,
    since: int,
    reason: str,
    asked_at: int,
    tags: list[str],
    preview: str,
) -> dict[str, Any]:
    """A line of the desk's list is new or changed; ``status`` closed takes it off the list.

    ``since``: when this status began, and ``reason`` why. ``asked_at``: the visitor's first
    message that nobody has answered yet, 0 when there is none. ``preview``: the last message's
    text, at most 200 characters. Times: Unix ms."""
    return {
        "type": "conversation.listed",
        "conversation_id": conversation_id,
        "status": status,
        "site": site,
        "visitor": visitor,
        "agent": agent,
        "created_at": created_at,
        "updated_at": updated_at,
        "since": since,
        "reason": reason,
        "asked_at": asked_at,
        "tags": tags,
        "preview": preview,
    }


def presence(agents: list[dict[str, Any]]) -> dict[str, Any]:
    """Who is at a desk now, and has which conversations open: ``[{username, role,
    conversations}]``, sorted by name. Sent after ``welcome`` and whenever it changes."""
    return {"type": "presence", "agents": agents}


def suggestions(conversation_id: str, drafts: dict[str, Any]) -> dict[str, Any]:
    """Drafts for the open question of a watched conversation: ``{suggestions_id, upto, version,
    drafts: [{id, text, source, confidence, origin, agreed}], complete, hints}``. Each frame
    replaces the one before; drafts grow until ``complete``. ``hints``: what past agents did next in
    the closest moments, ``[{kind: look_up|ask|then, text, share, origin}]``."""
    return {"type": "suggestions", "conversation_id": conversation_id, **drafts}


def suggestions_withdrawn(conversation_id: str, suggestions_id: str) -> dict[str, Any]:
    """The conversation moved on: these drafts must not be sent any more."""
    return {
        "type": "suggestions.withdrawn",
        "conversation_id": conversation_id,
        "suggestions_id": suggestions_id,
    }


def conversation_watched(
    conversation_id: str,
    epoch: str,
    offset: int,
    recovered: bool,
    status: str,
    agent: str,
    events: list[dict[str, Any]],
    live_reply: dict[str, Any] | None,
) -> dict[str, Any]:
    """Answer to ``conversation.watch``: as :func:`welcome`, and who holds the conversation."""
    return {
        **welcome(conversation_id, epoch, offset, recovered, status, events, live_reply),
        "type": "conversation.watched",
        "agent": agent,
    }


def error(
    code: str, message: str, retry_after: float | None = None, **extra: Any
) -> dict[str, Any]:
    """``extra`` may name what the error is about, e.g. ``client_message_id``. With
    ``retry_after`` (seconds) the same frame may be sent again after that time."""
    frame: dict[str, Any] = {"type": "error", "code": code, "message": message, **extra}
    if retry_after is not None:
        frame["retry_after"] = retry_after
    return frame


def error_of(problem: FrontdeskError, **extra: Any) -> dict[str, Any]:
    """The error frame of an exception of our own tree."""
    if isinstance(problem, Overloaded):
        return error(problem.code, str(problem), round(problem.retry_after, 2), **extra)
    if isinstance(problem, StoreUnavailable):
        # the cause may name hosts: it is logged, not sent
        message = "the message store is away for a moment: it was not kept, send it again"
        return error(problem.code, message, STORE_RETRY_SECONDS, **extra)
    if isinstance(problem, StorageFull):  # somebody makes room: clients keep it and try again
        message = "the message store has no room now: it was not kept, send it again"
        return error(problem.code, message, STORE_RETRY_SECONDS, **extra)
    return error(problem.code, str(problem), **extra)


def visitor_event(frame: dict[str, Any]) -> dict[str, Any] | None:
    """What a visitor may see of an event's frame: None for staff-only events; without what only
    staff need to know, such as the cause of a failure."""
    allowed = _VISITOR_FIELDS.get(frame["type"])
    if allowed is None:
        return None
    return {name: value for name, value in frame.items() if name in allowed}


def typing_seen(conversation_id: str) -> dict[str, Any]:
    """The visitor of a watched conversation is typing; sent again while it goes on."""
    return {"type": "typing", "conversation_id": conversation_id}
