"""What a chat client knows: its cursor, the reply that is being written, and the messages that
are not acknowledged. Pure: frames in, updates out; :mod:`chatbot.client` does the I/O.
"""

from dataclasses import dataclass, field
from typing import Any

from chatbot.errors import Overloaded, ProtocolViolation

Frame = dict[str, Any]
MOST_UNACKNOWLEDGED = 100
LONGEST_WAIT = 120.0  # seconds; a message that must wait longer is given back to its sender


class Gap(ProtocolViolation):
    """A piece of a reply is missing before this frame: reconnect from the cursor."""

    code = "gap"


@dataclass(frozen=True, slots=True)
class Connected:
    """The socket is open. ``recovered``: what follows continues what is known; otherwise the
    updates that follow are the whole conversation anew."""

    conversation_id: str
    recovered: bool
    status: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The socket closed with ``code``; the next try is in ``retry_in`` seconds."""

    code: int
    retry_in: float


@dataclass(frozen=True, slots=True)
class Said:
    """A person's message is in the conversation. ``role``: visitor or agent."""

    role: str
    text: str
    author: str
    offset: int
    client_message_id: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message of ours is kept."""

    client_message_id: str
    offset: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class ReplyStarted:
    """The bot begins to write; text shown under this id before is void."""

    reply_id: str
    version: str


@dataclass(frozen=True, slots=True)
class ReplyText:
    """``text`` is new, ``so_far`` the whole reply up to now."""

    reply_id: str
    text: str
    so_far: str


@dataclass(frozen=True, slots=True)
class ReplyEnded:
    """``text`` is the whole reply. ``finish_reason``: end, length, stopped, handoff or failed."""

    reply_id: str
    text: str
    finish_reason: str
    version: str


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """Who answers now: bot, waiting (for a person), human, closed."""

    status: str
    actor: str


@dataclass(frozen=True, slots=True)
class Problem:
    """The server refused something; with ``retry_after`` it may be tried again in so many seconds.
    The client does that itself when the wait is short (``tried_again``)."""

    code: str
    message: str
    retry_after: float | None
    client_message_id: str | None

    @property
    def tried_again(self) -> bool:
        """Whether the client sends it again by itself."""
        return self.retry_after is not None and self.retry_after <= LONGEST_WAIT


Update = (
    Connected
    | Disconnected
    | Said
    | Accepted
    | ReplyStarted
    | ReplyText
    | ReplyEnded
    | StatusChanged
    | Problem
)


@dataclass(slots=True)
class Unacknowledged:
    """A message that the server has not taken yet. ``due``: not to be sent before (loop time)."""

    text: str
    due: float = 0.0
    sent: bool = False  # on the present socket


@dataclass(slots=True)
class ChatState:
    """One conversation as a client sees it."""

    conversation_id: str | None = None
    epoch: str | None = None
    offset: int = 0
    status: str = "bot"
    reply_id: str | None = None  # of the reply that is being written
    reply_text: str = ""
    ended: set[str] = field(default_factory=set)
    unacknowledged: dict[str, Unacknowledged] = field(default_factory=dict)

    # -- ours to send

    def hello(self, token: str, new_conversation: bool) -> Frame:
        """The first frame: where to continue."""
        frame: Frame = {"type": "hello", "token": token}
        if self.conversation_id is not None:
            frame["conversation_id"] = self.conversation_id
        elif new_conversation:
            frame["new_conversation"] = True
        if self.epoch is not None:
            frame |= {"epoch": self.epoch, "offset": self.offset}
        return frame

    def add_message(self, client_message_id: str, text: str) -> None:
        """Keep a message until the server has taken it.

        Raises:
            Overloaded: too many wait already.
        """
        if len(self.unacknowledged) >= MOST_UNACKNOWLEDGED:
            raise Overloaded("too many messages wait to be sent: is the server away?")
        self.unacknowledged[client_message_id] = Unacknowledged(text)

    def disconnected(self) -> None:
        """The socket is gone: what it did not acknowledge must be sent again."""
        for message in self.unacknowledged.values():
            message.sent = False

    # -- theirs

    def receive(self, frame: Frame, now: float) -> list[Update]:
        """Take one frame; ``now`` is the caller's clock, in seconds.

        Raises:
            Gap: a piece of a reply is missing.
        """
        match frame["type"]:
            case "welcome":
                return self._welcome(frame)
            case "message.accepted":
                self.unacknowledged.pop(frame["client_message_id"], None)
                return [Accepted(frame["client_message_id"], frame["offset"], frame["duplicate"])]
            case "reply.started":
                return self._started(frame["reply_id"], frame["version"])
            case "reply.delta":
                return self._delta(frame["reply_id"], frame["from_char"], frame["text"])
            case "error":
                return [self._problem(frame, now)]
            case _:
                return self._event(frame)

    def _welcome(self, frame: Frame) -> list[Update]:
        if not frame["recovered"]:
            self.offset, self.reply_id, self.reply_text = 0, None, ""
            self.ended = set()
        self.conversation_id = frame["conversation_id"]
        self.epoch = frame["epoch"]
        updates: list[Update] = [
            Connected(frame["conversation_id"], frame["recovered"], frame["status"])
        ]
        for event in frame["events"]:
            updates += self._event(event)
        self.offset = max(self.offset, frame["offset"])
        self.status = frame["status"]
        live = frame["live_reply"]
        if live is not None:
            if self.reply_id == live["reply_id"] and not live["text"].startswith(self.reply_text):
                self.reply_id = None  # the store lost some of it: show it anew
            updates += self._started(live["reply_id"], live["version"])
            updates += self._delta(live["reply_id"], 0, live["text"])
        return updates

    def _event(self, frame: Frame) -> list[Update]:
        """An event of the log, once."""
        offset = frame.get("offset")
        if offset is None or offset <= self.offset:
            return []
        self.offset = offset
        match frame["type"]:
            case "message.created":  # no acknowledgement: the store's disk may not have it yet
                return [
                    Said(
                        frame["role"],
                        frame["text"],
                        frame["author"],
                        offset,
                        frame["client_message_id"],
                    )
                ]
            case "reply.completed":
                return self._end(frame, frame["finish_reason"], frame["version"])
            case "reply.failed":
                return self._end(frame, "failed", "")
            case "status.changed":
                self.status = frame["status"]
                return [StatusChanged(frame["status"], frame.get("agent") or frame["actor"])]
            case _:
                return []

    def _started(self, reply_id: str, version: str) -> list[Update]:
        # a reply that another worker continues starts again under its old id
        if reply_id in self.ended or reply_id == self.reply_id:
            return []
        self.reply_id, self.reply_text = reply_id, ""
        return [ReplyStarted(reply_id, version)]

    def _delta(self, reply_id: str, from_char: int, text: str) -> list[Update]:
        if reply_id in self.ended:
            return []
        known = len(self.reply_text) - from_char
        if reply_id != self.reply_id or known < 0:
            raise Gap(f"reply {reply_id}: text before character {from_char} is missing")
        new = text[known:]
        if not new:
            return []
        self.reply_text += new
        return [ReplyText(reply_id, new, self.reply_text)]

    def _end(self, frame: Frame, finish_reason: str, version: str) -> list[Update]:
        """The end of a reply; first what of its text was not told yet, if its start was."""
        reply_id, text = frame["reply_id"], frame["text"]
        updates: list[Update] = []
        if self.reply_id == reply_id:
            if not text.startswith(self.reply_text):
                self.reply_id = None  # not what was shown: show it anew
                updates += self._started(reply_id, version)
            updates += self._delta(reply_id, 0, text)
            self.reply_id, self.reply_text = None, ""
        self.ended.add(reply_id)
        return [*updates, ReplyEnded(reply_id, text, finish_reason, version)]

    def _problem(self, frame: Frame, now: float) -> Problem:
        if frame["code"] in ("not_found", "erased"):  # gone: the next hello begins a new one
            self.conversation_id = self.epoch = None
        if frame["code"] == "erased":  # words that it did not confirm are erased with the others
            self.unacknowledged.clear()
        retry_after = frame.get("retry_after")
        message_id = frame.get("client_message_id")
        waiting = self.unacknowledged.get(message_id) if message_id else None
        if waiting is not None and message_id is not None:
            if retry_after is None or retry_after > LONGEST_WAIT:
                del self.unacknowledged[message_id]  # refused for good
            else:
                waiting.sent, waiting.due = False, now + retry_after
        return Problem(frame["code"], frame["message"], retry_after, message_id)
