"""Taking reply jobs from the streams of all lanes."""

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from chatbot.conversation import keys
from chatbot.conversation.events import ConversationId
from chatbot.conversation.store import Scripts, as_text, call_store

MAX_WAIT = 1.0  # seconds of one blocking read; silent jobs of others are looked for in between
CLUSTER_POLL = 0.2  # seconds between looks on a cluster, where one read cannot wait on 64 slots
LOOKED_AT = 20  # old jobs of a lane that are looked at in one round


@dataclass(frozen=True, slots=True)
class Job:
    """An entry of a job stream that was delivered to this process."""

    lane: int
    job_id: str
    conversation_id: ConversationId
    reply_id: str


class JobStreams:
    """The job streams of all lanes, read as one queue. Jobs of a lane come in order; lanes are
    looked at in turn, so that none starves."""

    def __init__(self, redis: Redis, scripts: Scripts, lease_seconds: float) -> None:
        self._redis = redis
        self._scripts = scripts
        self._idle_ms = max(1, int(lease_seconds * 1000))
        self._streams = keys.lane_keys(keys.JOBS)
        self._lane_of = {stream: lane for lane, stream in enumerate(self._streams)}
        self._first = 0

    async def take(self) -> Job | None:
        """One job without waiting: an abandoned one (idle for a lease), or a new one."""
        order = [(self._first + step) % keys.LANES for step in range(keys.LANES)]
        self._first = (self._first + 1) % keys.LANES
        groups = [order]
        if self._scripts.clustered:
            groups = [[lane] for lane in await self._with_jobs(order)]
        for lanes in groups:
            streams = [self._streams[lane] for lane in lanes]
            reply = await self._scripts.run("take", streams, self._idle_ms)
            if reply[0] == "found":
                lane = lanes[int(reply[1]) - 1]
                return Job(lane, reply[2], ConversationId(reply[3]), reply[4])
        return None

    async def _with_jobs(self, order: list[int]) -> list[int]:
        """Those of the lanes that have jobs, taken or not: a script cannot look through the lanes
        of a cluster, and most of them are empty."""

        async def lengths() -> list[int]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for lane in order:
                    pipe.xlen(self._streams[lane])
                found: list[int] = await pipe.execute()
                return found

        return [lane for lane, count in zip(order, await call_store(lengths), strict=True) if count]

    async def wait(self, seconds: float) -> list[Job]:
        """Wait for new jobs. Usually one comes; several when they were added in the same instant
        in different lanes. The client's pool gives the read a connection that nobody else uses,
        and it waits less long than any sensible socket time-out."""
        seconds = min(seconds, MAX_WAIT)
        if self._scripts.clustered:
            await asyncio.sleep(min(seconds, CLUSTER_POLL))
            return []
        answer = await call_store(lambda: self._read(seconds))
        return [
            Job(self._lane_of[stream], job_id, ConversationId(fields["c"]), fields["r"])
            for stream, job_id, fields in _deliveries(answer)
        ]

    async def _read(self, seconds: float) -> Any:
        try:
            return await self._redis.xreadgroup(
                keys.GROUP,
                keys.CONSUMER,
                dict.fromkeys(self._streams, ">"),
                count=1,
                block=max(1, int(seconds * 1000)),
            )
        except ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            return None  # the store was flushed: take() makes the groups again

    async def older_than(self, seconds: float) -> list[Job]:
        """Jobs that were enqueued so long ago, at most ``LOOKED_AT`` of each lane; also those
        that a worker has."""
        now, _ = as_text(await call_store(self._redis.time))
        last = int((int(now) - seconds) * 1000)

        async def read() -> Any:
            pipe = self._redis.pipeline(transaction=False)
            for stream in self._streams:
                pipe.xrange(stream, "-", str(last), count=LOOKED_AT)
            return await pipe.execute()

        found = []
        for lane, entries in enumerate(await call_store(read)):
            for entry_id, fields in entries or ():
                decoded = {as_text(name): as_text(value) for name, value in fields.items()}
                found.append(
                    Job(lane, as_text(entry_id), ConversationId(decoded["c"]), decoded["r"])
                )
        return found

    async def drop(self, job: Job) -> None:
        """Forget a job whose conversation does not exist."""
        stream = self._streams[job.lane]
        await call_store(lambda: self._redis.xack(stream, keys.GROUP, job.job_id))
        await call_store(lambda: self._redis.xdel(stream, job.job_id))


def _deliveries(answer: Any) -> list[tuple[str, str, dict[str, str]]]:
    """(stream, entry id, fields) of an XREADGROUP reply, in each shape that redis-py may give
    it: RESP2 lists, RESP3 maps, with or without a list around the entries."""
    pairs = answer.items() if isinstance(answer, dict) else answer or ()
    found = []
    for stream, entries in pairs:
        flat = entries[0] if entries and isinstance(entries[0], list) else entries
        for entry_id, fields in flat:
            decoded = {as_text(name): as_text(value) for name, value in fields.items()}
            found.append((as_text(stream), as_text(entry_id), decoded))
    return found
