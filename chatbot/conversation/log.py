"""The conversation log on Redis (or Valkey). What is kept where: docs/architecture.md; why it is
so: docs/decisions/0004-conversation-log.md. Every write is one Lua script on one conversation.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Literal, cast

from redis.asyncio import Redis

from chatbot.conversation import changes, cluster_changes, keys, rules
from chatbot.conversation.archive import Archive
from chatbot.conversation.codec import event_of, head_of, head_of_pairs, to_json
from chatbot.conversation.events import (
    Accepted,
    ConversationId,
    Event,
    FactSource,
    Head,
    Lease,
    LiveReply,
    ReplyEnd,
    ReplyId,
    StaffEvent,
    Status,
    VisitorId,
)
from chatbot.conversation.interface import CLOSED_KEPT_SECONDS, Catchup, DeltaOutcome
from chatbot.conversation.jobs import Job, JobStreams
from chatbot.conversation.restore import Restorer
from chatbot.conversation.speech import Speech
from chatbot.conversation.store import Scripts, as_text, call_store
from chatbot.conversation.upkeep import Upkeep
from chatbot.errors import Conflict, InputError, NotFound, StoreUnavailable

OPEN_DAYS = 30  # open conversations come back to the desk's list when not older
TRIES = 8  # of a step that another process may get in the way of


class RedisLog(Upkeep, Speech):
    """:class:`chatbot.conversation.interface.ConversationLog` on Redis 7 or later, or Valkey.

    Args:
        redis: any client, also a RedisCluster; stays the caller's.
        archive: the record, from which conversations that the store lost are restored.
        lease_seconds: a worker that is silent this long loses its reply.
        max_attempts: leases of one reply before it fails.
        wait_for_disk: what people write is acknowledged only when it is on the store's disk.
    """

    def __init__(
        self,
        redis: Redis,
        archive: Archive | None,
        lease_seconds: float,
        max_attempts: int,
        wait_for_disk: bool = False,
    ) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._restorer = Restorer(self._scripts, archive)
        self._jobs = JobStreams(redis, self._scripts, lease_seconds)
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._wait_for_disk = wait_for_disk

    async def _run(
        self, script: str, conversation_id: ConversationId, *args: str | int, sync: bool = False
    ) -> list[Any]:
        """Run a script of one conversation; restore the conversation first when it must be. With
        ``sync``, return when the store's disk has it.

        Raises:
            NotFound: neither the store nor the record has it.
        """
        names = keys.keys_of(conversation_id).as_list()
        for _ in range(TRIES):
            reply = await self._scripts.run(
                script, names, *args, sync=keys.sync_key(conversation_id) if sync else ""
            )
            if reply[0] == "missing":
                await self._restorer.restore(conversation_id)
            elif reply[0] == "check":
                await self._restorer.check(conversation_id)
            else:
                return reply
        raise StoreUnavailable("the conversation store keeps losing this conversation: try again")

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
        existing = await self._restorer.known(conversation_id)
        if existing:
            found = await self.head(conversation_id)
            if found is not None:
                return found
        reply = await self._run(
            "create",
            conversation_id,
            conversation_id,
            _random(),
            site,
            visitor,
            kind,
            pinned_version,
            await self._restorer.erased_at(conversation_id),
        )
        return head_of_pairs(reply[1])

    async def head(self, conversation_id: ConversationId) -> Head | None:
        try:
            reply = await self._run("read", conversation_id, "head", "", -1)
        except NotFound:
            return None
        return head_of_pairs(reply[1])

    async def catch_up(
        self, conversation_id: ConversationId, epoch: str | None, offset: int | None
    ) -> Catchup:
        cursor = -1 if epoch is None or offset is None else offset
        reply = await self._run("read", conversation_id, "all", epoch or "", cursor)
        _, head, recovered, events, live = reply
        return Catchup(
            head=head_of_pairs(head),
            recovered=recovered == 1,
            events=[event_of(*pair) for pair in zip(events[::2], events[1::2], strict=True)],
            live=LiveReply(ReplyId(live[0]), live[1], live[2]) if live else None,
        )

    async def read(self, conversation_id: ConversationId, after: int = 0) -> list[Event]:
        """Events with an offset above ``after``. Raises NotFound."""
        catchup = await self.catch_up(conversation_id, None, None)
        return [event for event in catchup.events if event.offset > after]

    async def open_conversations(
        self, sites: Iterable[str] | None = None, limit: int = 200
    ) -> list[Head]:
        wanted = None if sites is None else set(sites)
        take = limit
        while True:
            newest = await self._lanes(keys.OPEN, take)
            newest.sort(key=lambda item: item[1], reverse=True)
            heads = await self._heads([cid for cid, _ in newest[:take]])
            found = [head for head in heads if wanted is None or head.site in wanted]
            if len(found) >= limit or len(newest) < take:
                return found[:limit]
            take *= 4

    async def _lanes(
        self, template: str, limit: int, newest: bool = True
    ) -> list[tuple[ConversationId, int]]:
        """Members of a lane's sorted set with their scores, up to ``limit`` of each lane."""

        def fill(pipe: Any) -> None:
            for name in keys.lane_keys(template):
                pipe.zrange(name, 0, limit - 1, desc=newest, withscores=True)

        lanes = await self._pipeline(fill)
        return [
            (ConversationId(as_text(member)), int(score))
            for lane in lanes
            for member, score in lane
        ]

    async def _heads(self, conversation_ids: list[ConversationId]) -> list[Head]:
        def fill(pipe: Any) -> None:
            for conversation_id in conversation_ids:
                pipe.hgetall(keys.keys_of(conversation_id).head)

        found = await self._pipeline(fill)
        decoded = [{as_text(k): as_text(v) for k, v in fields.items()} for fields in found]
        return [head_of(fields) for fields in decoded if fields]

    async def _pipeline(self, fill: Callable[[Any], object]) -> list[Any]:
        """Results of the commands that ``fill`` puts into a pipeline; they may be sent again."""

        async def execute() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                fill(pipe)
                results: list[Any] = await pipe.execute()
                return results

        return await call_store(execute)

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
        data: dict[str, Any] = {
            "role": role,
            "text": text,
            "client_message_id": client_message_id,
            "author": author,
        }
        answers = ""
        if suggestion is not None:
            data["suggestion"], answers = suggestion, str(suggestion["upto"])
        return await self._append(
            conversation_id,
            "message.created",
            role,
            data,
            client_message_id,
            author,
            answers,
            trace,
        )

    async def append_note(
        self, conversation_id: ConversationId, *, text: str, author: str, client_message_id: str
    ) -> Accepted:
        data = {"text": text, "author": author, "client_message_id": client_message_id}
        return await self._append(
            conversation_id, "note.created", "note", data, client_message_id, author
        )

    async def append_staff_event(
        self,
        conversation_id: ConversationId,
        kind: StaffEvent,
        data: dict[str, Any],
        event_id: str = "",
    ) -> int:
        name = event_id or _random()
        accepted = await self._append(conversation_id, kind, "staff", data, name, "")
        return accepted.offset

    async def give_rating(
        self, conversation_id: ConversationId, *, score: int, comment: str
    ) -> int:
        """Append the visitor's rating (1 to 5; the last one counts) and return its offset."""
        if not 1 <= score <= 5:
            raise InputError(f"score={score} is out of range: 1 to 5")
        data = {"score": score, "comment": comment}
        accepted = await self._append(
            conversation_id, "rating.given", "rating", data, _random(), ""
        )
        return accepted.offset

    async def describe_visitor(
        self,
        conversation_id: ConversationId,
        *,
        facts: Mapping[str, str],
        source: FactSource,
        client_message_id: str,
    ) -> Accepted:
        data = {"facts": facts, "source": source, "client_message_id": client_message_id}
        return await self._append(
            conversation_id, "visitor.described", "facts", data, client_message_id, ""
        )

    async def _append(
        self,
        conversation_id: ConversationId,
        kind: str,
        role: str,
        data: Mapping[str, Any],
        client_id: str,
        author: str,
        answers: str = "",
        trace: str = "",
    ) -> Accepted:
        field = keys.ID_FIELD.format(role=role, client_id=client_id)
        reply = await self._run(
            "append",
            conversation_id,
            kind,
            role,
            field,
            to_json(data),
            author,
            _random(),
            answers,
            trace,
            sync=self._wait_for_disk,
        )
        if reply[0] == "moved":
            raise Conflict("the conversation has moved on: this draft is withdrawn")
        if reply[0] == "conflict":
            held = f"held by {reply[2]}" if reply[2] else reply[1]
            raise Conflict(f"{author} does not hold this conversation (it is {held})")
        return Accepted(int(reply[1]), reply[2] == 1)

    async def change_status(
        self,
        conversation_id: ConversationId,
        status: Status,
        *,
        reason: str,
        actor: str,
        agent: str = "",
    ) -> Head:
        for _ in range(TRIES):
            head = await self.head(conversation_id)
            if head is None:
                raise NotFound(f"there is no conversation {conversation_id}")
            if rules.check_move(head.status, head.agent, status, agent, actor) == "nothing":
                return head
            reply = await self._run(
                "status",
                conversation_id,
                head.status,
                head.agent,
                status,
                reason,
                actor,
                agent if status == "human" else "",
                _random(),
            )
            if reply[0] == "ok":
                return head_of_pairs(reply[1])
        raise Conflict("the conversation changed hands at the same moment: look again")

    async def stop_reply(self, conversation_id: ConversationId, reply_id: ReplyId) -> bool:
        reply = await self._run("stop", conversation_id, reply_id, _random())
        return bool(reply[1] == 1)

    # -- the worker's side

    async def take_job(self, worker: str, block_seconds: float) -> Lease | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + block_seconds
        while True:
            job = await self._jobs.take()
            left = deadline - loop.time()
            if job is None and left <= 0:
                return None
            if job is None:
                came = await self._jobs.wait(min(left, self._lease_seconds / 2))
                job = came[0] if came else None
                for other in came[1:]:
                    await self._give_back(other)
            lease = await self._lease(job, worker) if job is not None else None
            if lease is not None:
                return lease

    async def _lease(self, job: Job, worker: str) -> Lease | None:
        try:
            reply = await self._run(
                "lease", job.conversation_id, job.job_id, job.reply_id, self._max_attempts, worker
            )
        except NotFound:
            await self._jobs.drop(job)
            return None
        if reply[0] != "ok":
            return None
        _, fence, attempt, streamed, upto, waited, trace = reply
        return Lease(
            conversation_id=job.conversation_id,
            reply_id=ReplyId(job.reply_id),
            fence=int(fence),
            attempt=int(attempt),
            streamed=streamed,
            upto=int(upto),
            job_id=job.job_id,
            waited=int(waited) / 1000,
            trace=trace,
        )

    async def _give_back(self, job: Job) -> None:
        names = keys.keys_of(job.conversation_id).as_list()
        await self._scripts.run("requeue", names, job.job_id, job.reply_id)

    async def _write(self, script: str, lease: Lease, *args: str | int) -> list[Any]:
        try:
            return await self._run(
                script, lease.conversation_id, lease.reply_id, lease.fence, *args
            )
        except NotFound:
            return ["lost"]

    async def start_reply(self, lease: Lease, version: str) -> DeltaOutcome:
        if not version:
            raise InputError("a reply names the version that writes it")
        reply = await self._write("start", lease, version)
        if reply[0] == "conflict":
            raise Conflict(f"version {reply[1]} began this reply and must end it, not {version}")
        return cast(DeltaOutcome, reply[0])

    async def append_delta(self, lease: Lease, from_char: int, text: str) -> DeltaOutcome:
        if not text:
            return await self.renew(lease)
        reply = await self._write("delta", lease, from_char, len(text), text)
        if reply[0] == "unannounced":
            raise Conflict("start_reply comes before the first delta", length=0)
        if reply[0] == "conflict":
            raise Conflict(
                f"the reply has {reply[1]} characters, this delta begins at {from_char}",
                length=int(reply[1]),
            )
        return cast(DeltaOutcome, reply[0])

    async def renew(self, lease: Lease) -> DeltaOutcome:
        reply = await self._write("renew", lease)
        return cast(DeltaOutcome, reply[0])

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
        rest = to_json({"usage": usage, "confidence": confidence, "seconds": round(seconds, 3)})
        reply = await self._write(
            "complete", lease, text, finish_reason, version, rest[1:-1], _random()
        )
        if reply[0] == "conflict":
            raise Conflict(
                f"the reply as streamed ({reply[1]} characters, version {reply[2] or 'none'}) is "
                f"not what is to be completed ({len(text)} characters, version {version})",
                length=int(reply[1]),
            )
        return cast(DeltaOutcome, reply[0])

    async def fail_reply(self, lease: Lease, *, version: str, reason: str) -> DeltaOutcome:
        reply = await self._write("fail", lease, version, reason)
        return cast(DeltaOutcome, reply[0])

    async def release(self, lease: Lease) -> None:
        await self._write("release", lease)

    async def queue_length(self) -> int:
        def fill(pipe: Any) -> None:
            for name in keys.lane_keys(keys.JOBS):
                pipe.xlen(name)

        return sum(await self._pipeline(fill))

    async def give_up_waiting(self, seconds: float) -> int:
        given_up = 0
        for job in await self._jobs.older_than(seconds):
            try:
                reply = await self._run(
                    "giveup", job.conversation_id, job.job_id, job.reply_id, int(seconds * 1000)
                )
                given_up += int(reply[1])
            except NotFound:
                await self._jobs.drop(job)
        return given_up

    # -- waking readers and the archiver

    def changes(self) -> AsyncIterator[ConversationId | None]:
        if self._scripts.clustered:
            return cluster_changes.follow(self._redis)
        return changes.follow(self._redis)

    async def unrecorded(self, limit: int = 100) -> list[tuple[ConversationId, int]]:
        found = await self._lanes(keys.DIRTY, limit, newest=False)
        return found[:limit]

    async def mark_recorded(
        self,
        conversation_id: ConversationId,
        offset: int,
        epoch: str,
        keep_seconds: int = CLOSED_KEPT_SECONDS,
    ) -> None:
        names = keys.keys_of(conversation_id).as_list()
        await self._scripts.run("recorded", names, conversation_id, epoch, offset, keep_seconds)

    async def restore_open(self) -> int:
        marks = keys.lane_keys(keys.RESTORED)  # one a lane: a cluster may lose some of them
        known = await self._pipeline(lambda pipe: [pipe.exists(mark) for mark in marks])
        lost = {lane for lane, there in enumerate(known) if not there}
        if not lost:
            return 0
        now, _ = await call_store(self._redis.time)
        since = 1000 * (int(now) - OPEN_DAYS * 86400)
        found = [
            conversation_id
            for conversation_id in await self._restorer.open_since(since)
            if keys.lane_of(conversation_id) in lost
        ]
        for conversation_id in found:
            await self.head(conversation_id)
        await self._pipeline(lambda pipe: [pipe.set(marks[lane], now) for lane in lost])
        return len(found)


def _random() -> str:
    return secrets.token_hex(8)
