"""The port to the conversation log. ``log.py`` implements it on Redis; tests check a fake in
memory against the same contract suite. Every method may raise StoreUnavailable or StorageFull.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from chatbot.conversation.events import (
    Accepted,
    ConversationId,
    Event,
    FactSource,
    Head,
    Lease,
    LiveReply,
    Partial,
    ReplyEnd,
    ReplyId,
    StaffEvent,
    Status,
    VisitorId,
)

CLOSED_KEPT_SECONDS = 30 * 86400
PartialOutcome = Literal["kept", "stale", "final"]  # final: the utterance is in the log already
DeltaOutcome = Literal["written", "lost"]  # lost: stopped, handed over, or the lease is another's


@dataclass(frozen=True, slots=True)
class Catchup:
    """What a reader gets. ``recovered``: ``events`` are exactly those after its offset; otherwise
    they are the whole log (the epoch differs, or the offset is not in this log). The head's epoch
    may be a newer one also when ``recovered``: the reader keeps that."""

    head: Head
    recovered: bool
    events: list[Event]
    live: LiveReply | None


class ConversationLog(Protocol):
    """Append-only logs of conversations. One instance serves one process."""

    # -- conversations
    async def create(
        self,
        conversation_id: ConversationId,
        *,
        site: str,
        visitor: VisitorId,
        kind: Literal["chat", "playground"] = "chat",
        pinned_version: str = "",
    ) -> Head:
        """Begin a conversation with status ``bot``; if it exists already, return its head."""
        ...

    async def head(self, conversation_id: ConversationId) -> Head | None: ...

    async def catch_up(
        self, conversation_id: ConversationId, epoch: str | None, offset: int | None
    ) -> Catchup:
        """Everything after the reader's cursor, and the live reply, read in one atomic step.

        Raises:
            NotFound: no such conversation (also not in the record).
        """
        ...

    async def read(self, conversation_id: ConversationId, after: int = 0) -> list[Event]: ...

    async def open_conversations(
        self, sites: Iterable[str] | None = None, limit: int = 200
    ) -> list[Head]:
        """Conversations that are not closed, last activity first; without playgrounds."""
        ...

    # -- writing
    async def append_message(
        self,
        conversation_id: ConversationId,
        *,
        role: Literal["visitor", "agent"],
        text: str,
        client_message_id: str,
        author: str,
        suggestion: dict[str, Any] | None = None,
        trace: str = "",
    ) -> Accepted:
        """Append a message once per ``client_message_id``. A visitor's message while the status
        is ``bot`` also enqueues a reply job in the same atomic step (or marks one as due when a
        reply is running); ``trace``, a W3C ``traceparent``, goes with the job. A visitor's
        message in a closed conversation reopens it with the bot.

        Raises:
            NotFound: no such conversation.
            Conflict: an agent writes who does not hold the conversation; or the message began as
                a ``suggestion`` and what that answers (``upto``) is not the open question any more.
        """
        ...

    async def append_note(
        self, conversation_id: ConversationId, *, text: str, author: str, client_message_id: str
    ) -> Accepted: ...

    async def append_staff_event(
        self,
        conversation_id: ConversationId,
        kind: StaffEvent,
        data: dict[str, Any],
        event_id: str = "",
    ) -> int:
        """Append what staff say beside the talk, once per ``event_id`` if there is one; its
        offset. Raises NotFound."""
        ...

    async def give_rating(
        self, conversation_id: ConversationId, *, score: int, comment: str
    ) -> int: ...

    async def describe_visitor(
        self,
        conversation_id: ConversationId,
        *,
        facts: Mapping[str, str],
        source: FactSource,
        client_message_id: str,
    ) -> Accepted:
        """Append what is known of the visitor, for staff, once per ``client_message_id``."""
        ...

    async def change_status(
        self,
        conversation_id: ConversationId,
        status: Status,
        *,
        reason: str,
        actor: str,
        agent: str = "",
    ) -> Head:
        """Move to another status (see :mod:`chatbot.conversation.rules` for the legal moves). A
        running reply ends first, as ``handoff``. Moving to ``bot`` enqueues a reply when the last
        message is a visitor's.

        Raises:
            Conflict: the move is not legal now, e.g. claiming what another agent holds.
        """
        ...

    async def stop_reply(self, conversation_id: ConversationId, reply_id: ReplyId) -> bool:
        """End the reply as ``stopped`` with the text so far; False when it is not running."""
        ...

    # -- what is spoken in a call
    async def append_utterance(
        self,
        conversation_id: ConversationId,
        *,
        speaker: Literal["visitor", "agent"],
        text: str,
        utterance_id: str,
        spoken_at: int,
    ) -> Accepted:
        """Append what was said, once per ``utterance_id``, whoever said it; its partial is gone. It
        is the agent's who holds the call. Out of order: what a customer said before the agent's
        last words, or the agent before the open question, has its place there (``late``) and
        neither asks nor answers.

        Raises:
            NotFound: no such conversation.
            Conflict: nobody holds the call: it is over.
        """
        ...

    async def put_partial(
        self,
        conversation_id: ConversationId,
        partial: Partial,
        *,
        keep_seconds: float,
        most: int,
    ) -> PartialOutcome:
        """Show what is being said, in place of an earlier partial of the same id, and forget it
        after ``keep_seconds``. ``stale``: the one that is shown was said later.

        Raises:
            NotFound, Conflict: as above.
            RequestRefused: ``most`` are open.
        """
        ...

    async def partials(self, conversation_id: ConversationId, keep_seconds: float) -> list[Partial]:
        """What is being said now, in the order of its time."""
        ...

    # -- the worker's side
    async def take_job(self, worker: str, block_seconds: float) -> Lease | None:
        """Lease the next reply job, new or abandoned; None when none came in time. Jobs that
        need no reply any more are dropped inside."""
        ...

    async def start_reply(self, lease: Lease, version: str) -> DeltaOutcome:
        """Announce who writes. A continued reply keeps the version that began it, which the
        caller reads from ``catch_up(...).live``."""
        ...

    async def append_delta(self, lease: Lease, from_char: int, text: str) -> DeltaOutcome:
        """Stream ``text`` at code point ``from_char``, and renew the lease. The same call again
        changes nothing.

        Raises:
            Conflict: the reply has another length; ``data["length"]`` is it, in code points.
        """
        ...

    async def renew(self, lease: Lease) -> DeltaOutcome: ...

    async def complete_reply(
        self,
        lease: Lease,
        *,
        text: str,
        finish_reason: ReplyEnd,
        version: str,
        usage: dict[str, int],
        confidence: float | None,
        seconds: float,
    ) -> DeltaOutcome:
        """Append ``reply.completed``, end the job, and enqueue the next one when messages came
        in meanwhile. For ``end`` and ``length`` only: the store itself ends the others.

        Raises:
            Conflict: ``text`` is not what was streamed.
        """
        ...

    async def fail_reply(self, lease: Lease, *, version: str, reason: str) -> DeltaOutcome:
        """Append ``reply.failed`` with the text shown so far, and hand the conversation to people
        (``status.changed {waiting}``)."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give an unfinished job back at once (a worker that shuts down)."""
        ...

    async def queue_length(self) -> int:
        """Reply jobs that wait or are being written."""
        ...

    async def give_up_waiting(self, seconds: float) -> int:
        """End the replies that nobody took for ``seconds`` as failed (``busy``), so that people
        are asked; how many. A reply that a worker has is not touched."""
        ...

    # -- waking readers and the archiver
    def changes(self) -> AsyncIterator[ConversationId | None]:
        """Ids of conversations that changed. None means: anything may have changed while the
        subscription was down, look at all. Ends when closed."""
        ...

    async def unrecorded(self, limit: int = 100) -> list[tuple[ConversationId, int]]:
        """Conversations with events that the record lacks, with the last offset of each."""
        ...

    async def mark_recorded(
        self,
        conversation_id: ConversationId,
        offset: int,
        epoch: str,
        keep_seconds: int = CLOSED_KEPT_SECONDS,
    ) -> None:
        """The record has the events of this epoch up to ``offset``. Of another epoch than the
        log's: ignored, since what was recorded is not what the log holds now. A conversation that
        is closed and wholly recorded leaves the store after ``keep_seconds``."""
        ...

    async def restore_open(self) -> int:
        """After the store lost everything: bring back the conversations that are open in the
        record, so that staff see them before their visitors return. Their number; cheap when
        nothing was lost."""
        ...

    # -- rules and rights
    async def now_ms(self) -> int:
        """The store's clock, Unix time in milliseconds: that of ``Head.created_at``."""
        ...

    async def run_id(self) -> str:
        """Changes when the store was restarted, and so may have lost its last writes."""
        ...

    async def erase(
        self, conversation_id: ConversationId, erased_at: int, only_before: int | None = None
    ) -> bool | None:
        """Delete the log if it began at ``erased_at`` or before, and let nothing that did come
        back under its id: not from the record, not by a worker that writes. Readers are woken.
        Again: nothing more happens.

        Returns:
            whether there was a log; None when something was said after ``only_before``: then
            nothing was deleted.
        """
        ...

    async def conversations_of(
        self, site: str, visitor: VisitorId, until: int
    ) -> list[ConversationId]:
        """What the store holds of a visitor that began at ``until`` (Unix ms) or before. Looks at
        every head: for rare use."""
        ...

    def idle(self, last_active: int) -> AsyncIterator[tuple[ConversationId, str, int]]:
        """(conversation, site, last activity) of conversations that are not closed and in which
        nothing happened after ``last_active`` (Unix ms)."""
        ...

    async def close_idle(self, conversation_id: ConversationId, last_active: int) -> bool:
        """Close it (reason ``idle``), unless something happened after ``last_active`` or a reply
        is owed, in one step; whether it was closed now."""
        ...
