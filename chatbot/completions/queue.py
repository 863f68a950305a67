"""The queue of completions: any server adds, any worker takes.

A job stays in the queue until its server knows which worker has it. Should the worker die before
that, another one takes it once it was silent for a lease; after that the server notices by itself.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from chatbot.completions import keys
from chatbot.completions.wire import Job
from chatbot.conversation.store import as_text, call_store
from chatbot.errors import EngineBusy

log = structlog.get_logger()

_ADD = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
return redis.call('XADD', KEYS[1], '*', 'j', ARGV[2])
"""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A job that this worker may serve."""

    entry: str  # its place in the queue
    job: Job


class JobQueue:
    """Every method raises StoreUnavailable or StorageFull."""

    def __init__(self, redis: Redis, lease_seconds: float) -> None:
        self._redis = redis
        self._lease_seconds = lease_seconds
        self._add = redis.register_script(_ADD)
        self._claimed_at = float("-inf")

    async def add(self, job: Job, most: int) -> str:
        """The job's entry. Raises EngineBusy: ``most`` jobs wait already."""
        entry = await call_store(lambda: self._add(keys=[keys.JOBS], args=[most, job.dump()]))
        if not entry:
            raise EngineBusy(f"{most} requests wait for a worker already", retry_after=2.0)
        return str(as_text(entry))

    async def take(self, seconds: float) -> Delivery | None:
        """The oldest job, waiting for one up to ``seconds``; None when there is none."""
        now = asyncio.get_running_loop().time()
        found = None
        if now - self._claimed_at > self._lease_seconds:
            self._claimed_at = now
            found = await call_store(self._claim)
        found = found or await call_store(lambda: self._read(seconds))
        if found is None:
            return None
        entry, payload = found
        try:
            return Delivery(entry, Job.load(payload))
        except (ValueError, TypeError) as error:
            log.error("completions.bad_job", entry=entry, error=str(error))
            await self.done([entry])
            return None

    async def done(self, entries: list[str]) -> None:
        """Take jobs off the queue: started elsewhere, or not wanted any more. Again is no harm."""
        if entries:
            await call_store(lambda: self._redis.xack(keys.JOBS, keys.GROUP, *entries))
            await call_store(lambda: self._redis.xdel(keys.JOBS, *entries))

    async def _claim(self) -> tuple[str, str] | None:
        """A job whose taker was silent for a lease."""
        idle = int(self._lease_seconds * 1000)
        try:
            answer = await self._redis.xautoclaim(
                keys.JOBS, keys.GROUP, keys.CONSUMER, idle, "0-0", count=1
            )
        except ResponseError as error:
            await self._make_group(error)
            return None
        return _first(answer[1])

    async def _read(self, seconds: float) -> tuple[str, str] | None:
        try:
            answer = await self._redis.xreadgroup(
                keys.GROUP,
                keys.CONSUMER,
                {keys.JOBS: ">"},
                count=1,
                block=max(1, int(seconds * 1000)),
            )
        except ResponseError as error:
            await self._make_group(error)
            return None
        return _first(entries_of(answer))

    async def _make_group(self, error: ResponseError) -> None:
        """The store is new or was flushed; a blocked read is told in words of its own."""
        if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
            raise error
        try:
            await self._redis.xgroup_create(keys.JOBS, keys.GROUP, "0", mkstream=True)
        except ResponseError as exists:
            if not str(exists).startswith("BUSYGROUP"):
                raise


def entries_of(answer: Any) -> list[Any]:
    """The entries of an XREAD or XREADGROUP of one stream, in each shape that redis-py gives:
    RESP2 lists, RESP3 maps, with or without a list around the entries."""
    pairs = list(answer.items() if isinstance(answer, dict) else answer or ())
    if not pairs:
        return []
    entries = pairs[0][1]
    return list(entries[0] if entries and isinstance(entries[0], list) else entries)


def _first(entries: list[Any]) -> tuple[str, str] | None:
    for entry, fields in entries:
        if fields:  # a deleted job's entry has none
            return as_text(entry), as_text(next(iter(fields.values())))
    return None
