"""The conversation log in memory: the port's meaning in plain Python, for the contract suite and
for tests that need no store. One process, no record."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chatbot.conversation import rules
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
from chatbot.conversation.interface import Catchup, DeltaOutcome
from chatbot.errors import Conflict, InputError, NotFound
from tests.chatbot.conversation.memory_speech import MemorySpeech


@dataclass
class _Reply:
    id: str
    queued: float
    job: int
    version: str = ""
    text: str = ""
    last_delta: tuple[int, str] | None = None
    upto: int = 0
    attempt: int = 0
    expires: float | None = None  # None: nobody has it


@dataclass
class _Conversation:
    head: Head
    events: list[Event] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    reply: _Reply | None = None
    fence: int = 0
    asked: int = 0
    answered: int = 0
    ended: tuple[str, int] | None = None
    trace: str = ""
    talk: dict[str, tuple[float, Partial]] = field(default_factory=dict)
    said: int = 0
    said_at: int = 0
    asked_at: int = 0


class MemoryLog(MemorySpeech):
    """:class:`chatbot.conversation.interface.ConversationLog` without a store."""

    def __init__(self, lease_seconds: float, max_attempts: int) -> None:
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._all: dict[ConversationId, _Conversation] = {}
        self._gone: dict[ConversationId, int] = {}
        self._jobs = 0
        self._dirty: set[ConversationId] = set()
        self._listeners: set[asyncio.Event] = set()
        self._changed: list[ConversationId] = []

    # -- inside

    def _get(self, conversation_id: ConversationId) -> _Conversation:
        if conversation_id not in self._all:
            raise NotFound(f"there is no conversation {conversation_id}")
        return self._all[conversation_id]

    def _append(self, c: _Conversation, kind: Any, data: dict[str, Any]) -> int:
        at = max(int(time.time() * 1000), c.head.updated_at)
        offset = c.head.offset + 1
        c.events.append(Event(offset, kind, at, data))
        c.head = replace(c.head, offset=offset, updated_at=at)
        if c.head.kind == "chat":
            self._dirty.add(c.head.conversation_id)
        return offset

    def _notify(self, c: _Conversation) -> None:
        self._changed.append(c.head.conversation_id)
        for listener in self._listeners:
            listener.set()

    def _enqueue_if_due(self, c: _Conversation) -> None:
        if c.head.status == "bot" and c.reply is None and c.asked > c.answered:
            self._jobs += 1
            c.reply = _Reply(secrets.token_hex(8), time.monotonic(), self._jobs)

    def _status(
        self, c: _Conversation, status: Status, reason: str, actor: str, agent: str
    ) -> None:
        data = {"status": status, "previous": c.head.status, "reason": reason, "actor": actor}
        self._append(c, "status.changed", {**data, "agent": agent})
        c.head = replace(c.head, status=status, agent=agent)
        if status == "closed":
            c.talk.clear()

    def _completed(self, c: _Conversation, r: _Reply, finish: str, **rest: Any) -> None:
        data = {"reply_id": r.id, "text": r.text, "finish_reason": finish, "version": r.version}
        self._append(c, "reply.completed", {**data, "upto": r.upto, **rest})

    def _end_reply(self, c: _Conversation, finish: str) -> None:
        r = c.reply
        if r is None:
            return
        r.upto = r.upto or c.asked
        if r.version or finish == "stopped":
            self._completed(c, r, finish, usage={}, confidence=None, seconds=0.0)
        if finish == "stopped" or r.text:
            c.answered = max(c.answered, r.upto)
        c.reply = None

    def _fail(self, c: _Conversation, r: _Reply, reason: str) -> None:
        data = {"reply_id": r.id, "text": r.text, "version": r.version, "upto": r.upto}
        self._append(c, "reply.failed", {**data, "reason": reason})
        c.reply = None
        if c.head.kind == "chat":
            self._status(c, "waiting", "reply_failed", "system", "")

    def _held(self, lease: Lease) -> tuple[_Conversation, _Reply] | None:
        c = self._all.get(lease.conversation_id)
        if c is None or c.reply is None:
            return None
        if c.reply.id != lease.reply_id or c.fence != lease.fence:
            return None
        c.reply.expires = time.monotonic() + self._lease_seconds
        return c, c.reply

    def _head(self, c: _Conversation) -> Head:
        return replace(c.head, asked=c.asked, answered=c.answered)

    def owes_reply(self, conversation_id: ConversationId) -> bool:
        """Whether a reply is queued or being written."""
        return self._get(conversation_id).reply is not None

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
        if conversation_id not in self._all:
            now = max(int(time.time() * 1000), self._gone.get(conversation_id, 0) + 1)
            head = Head(
                conversation_id, secrets.token_hex(8), 0, "bot", site, visitor, "", kind,
                pinned_version, now, now,
            )  # fmt: skip
            self._all[conversation_id] = _Conversation(head)
        return self._head(self._all[conversation_id])

    async def head(self, conversation_id: ConversationId) -> Head | None:
        found = self._all.get(conversation_id)
        return self._head(found) if found else None

    async def catch_up(
        self, conversation_id: ConversationId, epoch: str | None, offset: int | None
    ) -> Catchup:
        c = self._get(conversation_id)
        known = epoch == c.head.epoch and offset is not None and 0 <= offset <= c.head.offset
        events = c.events[offset:] if known else list(c.events)
        r = c.reply
        live = LiveReply(ReplyId(r.id), r.version, r.text) if r and r.version else None
        return Catchup(self._head(c), known, events, live)

    async def read(self, conversation_id: ConversationId, after: int = 0) -> list[Event]:
        return self._get(conversation_id).events[after:]

    async def open_conversations(
        self, sites: Iterable[str] | None = None, limit: int = 200
    ) -> list[Head]:
        wanted = None if sites is None else set(sites)
        heads = [self._head(c) for c in self._all.values() if c.head.kind == "chat" and c.events]
        heads = [h for h in heads if h.status != "closed" and (wanted is None or h.site in wanted)]
        return sorted(heads, key=lambda h: h.updated_at, reverse=True)[:limit]

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
        c = self._get(conversation_id)
        field_name = f"{role}:{client_message_id}"
        if field_name in c.ids:
            return Accepted(c.ids[field_name], True)
        if role == "agent" and (c.head.status != "human" or c.head.agent != author):
            raise Conflict(f"{author} does not hold this conversation")
        if suggestion is not None and self._head(c).question != suggestion["upto"]:
            raise Conflict("the conversation has moved on")
        if role == "visitor" and c.head.status == "closed":
            self._status(c, "bot", "visitor_wrote", "visitor", "")
        data: dict[str, Any] = {"role": role, "text": text, "client_message_id": client_message_id}
        if suggestion is not None:
            data["suggestion"] = suggestion
        offset = self._append(c, "message.created", {**data, "author": author})
        c.ids[field_name] = offset
        if role == "visitor":
            c.asked = offset
            c.trace = trace
            self._enqueue_if_due(c)
        else:
            c.answered = max(c.answered, offset)
        self._notify(c)
        return Accepted(offset, False)

    async def append_note(
        self, conversation_id: ConversationId, *, text: str, author: str, client_message_id: str
    ) -> Accepted:
        c = self._get(conversation_id)
        field_name = f"note:{client_message_id}"
        if field_name in c.ids:
            return Accepted(c.ids[field_name], True)
        data = {"text": text, "author": author, "client_message_id": client_message_id}
        c.ids[field_name] = self._append(c, "note.created", data)
        self._notify(c)
        return Accepted(c.ids[field_name], False)

    async def describe_visitor(
        self,
        conversation_id: ConversationId,
        *,
        facts: Mapping[str, str],
        source: FactSource,
        client_message_id: str,
    ) -> Accepted:
        c = self._get(conversation_id)
        field_name = f"facts:{client_message_id}"
        if field_name in c.ids:
            return Accepted(c.ids[field_name], True)
        data = {"facts": dict(facts), "source": source, "client_message_id": client_message_id}
        c.ids[field_name] = self._append(c, "visitor.described", data)
        self._notify(c)
        return Accepted(c.ids[field_name], False)

    async def append_staff_event(
        self,
        conversation_id: ConversationId,
        kind: StaffEvent,
        data: dict[str, Any],
        event_id: str = "",
    ) -> int:
        c = self._get(conversation_id)
        field_name = f"staff:{event_id or secrets.token_hex(8)}"
        if field_name in c.ids:
            return c.ids[field_name]
        offset = c.ids[field_name] = self._append(c, kind, data)
        self._notify(c)
        return offset

    async def give_rating(
        self, conversation_id: ConversationId, *, score: int, comment: str
    ) -> int:
        if not 1 <= score <= 5:
            raise InputError(f"score={score} is out of range: 1 to 5")
        c = self._get(conversation_id)
        offset = self._append(c, "rating.given", {"score": score, "comment": comment})
        self._notify(c)
        return offset

    async def change_status(
        self,
        conversation_id: ConversationId,
        status: Status,
        *,
        reason: str,
        actor: str,
        agent: str = "",
    ) -> Head:
        c = self._get(conversation_id)
        if rules.check_move(c.head.status, c.head.agent, status, agent, actor) == "move":
            if status != "bot":
                self._end_reply(c, "handoff")
            self._status(c, status, reason, actor, agent if status == "human" else "")
            self._enqueue_if_due(c)
            self._notify(c)
        return self._head(c)

    async def stop_reply(self, conversation_id: ConversationId, reply_id: ReplyId) -> bool:
        c = self._get(conversation_id)
        if c.reply is None or c.reply.id != reply_id:
            return False
        self._end_reply(c, "stopped")
        self._enqueue_if_due(c)
        self._notify(c)
        return True

    # -- the worker's side

    async def take_job(self, worker: str, block_seconds: float) -> Lease | None:
        deadline = time.monotonic() + block_seconds
        while True:
            lease = self._take()
            if lease is not None or time.monotonic() >= deadline:
                return lease
            await asyncio.sleep(0.01)

    def _take(self) -> Lease | None:
        now = time.monotonic()
        for c in sorted(self._all.values(), key=lambda c: c.reply.job if c.reply else 0):
            r = c.reply
            if r is None or (r.expires is not None and r.expires > now):
                continue
            c.fence += 1
            if r.attempt >= self._max_attempts:
                self._fail(c, r, "attempts")
                self._notify(c)
                continue
            r.attempt += 1
            r.expires = now + self._lease_seconds
            if not r.text:
                r.upto = c.head.offset
            return Lease(
                c.head.conversation_id, ReplyId(r.id), c.fence, r.attempt, r.text, r.upto,
                str(r.job), now - r.queued, c.trace,
            )  # fmt: skip
        return None

    async def start_reply(self, lease: Lease, version: str) -> DeltaOutcome:
        held = self._held(lease)
        if held is None:
            return "lost"
        c, r = held
        if r.version and r.version != version:
            raise Conflict(f"version {r.version} began this reply")
        r.version = version
        self._notify(c)
        return "written"

    async def append_delta(self, lease: Lease, from_char: int, text: str) -> DeltaOutcome:
        if not text:
            return await self.renew(lease)
        held = self._held(lease)
        if held is None:
            return "lost"
        c, r = held
        if not r.version:
            raise Conflict("start_reply comes before the first delta", length=0)
        if (from_char, text) == r.last_delta:
            return "written"
        if from_char != len(r.text):
            raise Conflict("another length", length=len(r.text))
        r.text += text
        r.last_delta = (from_char, text)
        self._notify(c)
        return "written"

    async def renew(self, lease: Lease) -> DeltaOutcome:
        return "lost" if self._held(lease) is None else "written"

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
        if finish_reason not in ("end", "length"):
            raise InputError(f"{finish_reason} is not a worker's way to end a reply")
        held = self._held(lease)
        if held is None:
            c = self._all.get(lease.conversation_id)
            again = c is not None and c.ended == (lease.reply_id, lease.fence)
            return "written" if again else "lost"
        c, r = held
        if text != r.text or version != r.version:
            raise Conflict("not what was streamed", length=len(r.text))
        self._completed(
            c, r, finish_reason, usage=usage, confidence=confidence, seconds=round(seconds, 3)
        )
        c.answered = max(c.answered, r.upto)
        c.reply = None
        c.ended = (lease.reply_id, lease.fence)
        self._enqueue_if_due(c)
        self._notify(c)
        return "written"

    async def fail_reply(self, lease: Lease, *, version: str, reason: str) -> DeltaOutcome:
        held = self._held(lease)
        if held is None:
            c = self._all.get(lease.conversation_id)
            again = c is not None and c.ended == (lease.reply_id, lease.fence)
            return "written" if again else "lost"
        c, r = held
        r.version = r.version or version
        self._fail(c, r, reason)
        c.ended = (lease.reply_id, lease.fence)
        self._notify(c)
        return "written"

    async def release(self, lease: Lease) -> None:
        held = self._held(lease)
        if held is not None:
            c, r = held
            c.fence += 1
            r.attempt -= 1
            r.expires = None

    async def queue_length(self) -> int:
        return sum(c.reply is not None for c in self._all.values())

    async def give_up_waiting(self, seconds: float) -> int:
        now = time.monotonic()
        late = [
            (c, c.reply)
            for c in self._all.values()
            if c.reply is not None and now - max(c.reply.queued, c.reply.expires or 0.0) >= seconds
        ]
        for c, reply in late:
            reply.upto = reply.upto or c.asked
            c.fence += 1
            self._fail(c, reply, "busy")
            self._notify(c)
        return len(late)

    # -- waking readers and the archiver

    async def changes(self) -> AsyncIterator[ConversationId | None]:
        news = asyncio.Event()
        self._listeners.add(news)
        seen = len(self._changed)
        try:
            yield None
            while True:
                await news.wait()
                news.clear()
                fresh = dict.fromkeys(self._changed[seen:])
                seen = len(self._changed)
                for conversation_id in fresh:
                    yield conversation_id
        finally:
            self._listeners.discard(news)

    async def unrecorded(self, limit: int = 100) -> list[tuple[ConversationId, int]]:
        found = [(cid, self._all[cid].head.offset) for cid in self._dirty]
        return sorted(found, key=lambda item: item[1])[:limit]

    async def mark_recorded(
        self, conversation_id: ConversationId, offset: int, epoch: str, keep_seconds: int = 0
    ) -> None:
        c = self._all.get(conversation_id)
        if c is None or epoch != c.head.epoch:
            return
        c.head = replace(c.head, recorded=max(c.head.recorded, offset))
        if offset >= c.head.offset:
            self._dirty.discard(conversation_id)

    async def restore_open(self) -> int:
        return 0

    # -- rules and rights

    async def now_ms(self) -> int:
        return int(time.time() * 1000)

    async def run_id(self) -> str:
        return "memory"

    async def erase(
        self, conversation_id: ConversationId, erased_at: int, only_before: int | None = None
    ) -> bool | None:
        c = self._all.get(conversation_id)
        if c is not None and c.head.created_at > erased_at:
            return False
        if c is not None and only_before is not None and c.head.updated_at > only_before:
            return None
        self._gone[conversation_id] = max(erased_at, self._gone.get(conversation_id, 0))
        self._all.pop(conversation_id, None)
        self._dirty.discard(conversation_id)
        if c is not None:
            self._notify(c)
        return c is not None

    async def conversations_of(
        self, site: str, visitor: VisitorId, until: int
    ) -> list[ConversationId]:
        return [
            cid
            for cid, c in self._all.items()
            if (c.head.site, c.head.visitor) == (site, visitor) and c.head.created_at <= until
        ]  # fmt: skip

    async def idle(self, last_active: int) -> AsyncIterator[tuple[ConversationId, str, int]]:
        for head in await self.open_conversations(limit=10**9):
            if head.updated_at <= last_active:
                yield head.conversation_id, head.site, head.updated_at

    async def close_idle(self, conversation_id: ConversationId, last_active: int) -> bool:
        c = self._all.get(conversation_id)
        if c is None or c.head.status == "closed" or c.reply is not None:
            return False
        if c.head.updated_at > last_active:
            return False
        self._status(c, "closed", "idle", "system", "")
        self._notify(c)
        return True
