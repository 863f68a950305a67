"""Open sockets of each visitor, address and site, over all servers.

A sorted set per subject has an entry for each socket, scored by when it ends to count. Servers
renew the entries of their sockets; those of a server that died fall out by themselves. While the
store is away each server goes by its own sockets alone.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import Redis

from chatbot.conversation.store import as_text, call_store
from chatbot.errors import RateLimited, StorageFull, StoreUnavailable

log = structlog.get_logger()
ENTRY_SECONDS = 60.0  # an entry counts so long after it was renewed
RENEW_SECONDS = 20.0
LEAVE_SECONDS = 2.0
BATCH = 500  # entries renewed in one round trip

_ENTER = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[3]))
return 1
"""


class OpenSockets:
    """One per server process."""

    def __init__(self, redis: Redis, entry_seconds: float = ENTRY_SECONDS) -> None:
        self._redis = redis
        self._seconds = entry_seconds
        self._enter = redis.register_script(_ENTER)
        self._here: Counter[str] = Counter()  # key -> sockets of this process
        self._entries: set[tuple[str, str]] = set()  # (key, member) of this process
        self._leaving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def hold(self, limit: str, subject: str, most: int) -> AsyncIterator[None]:
        """Count one socket while the block runs.

        Raises:
            RateLimited: the subject has ``most`` already.
        """
        key = f"fd:sockets:{limit}:{subject}"
        entry = (key, secrets.token_hex(8))
        if self._here[key] >= most or not await self._counted(entry, most):
            whose = limit.removeprefix("sockets_per_")
            raise RateLimited(
                f"too many open connections of this {whose}: at most {most}; close some",
                retry_after=10.0,
                limit=limit,
            )
        self._here[key] += 1
        self._entries.add(entry)
        try:
            yield
        finally:
            self._here[key] -= 1
            if not self._here[key]:
                del self._here[key]
            self._entries.discard(entry)
            # in the background: a task that is being cancelled cannot wait for the store
            task = asyncio.create_task(self._leave(entry))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _counted(self, entry: tuple[str, str], most: int) -> bool:
        """False when the store says that there are too many."""
        key, member = entry
        try:
            args = [member, most, self._seconds]
            return bool(await call_store(lambda: self._enter(keys=[key], args=args)))
        except (StoreUnavailable, StorageFull) as error:
            log.debug("limits.socket_not_counted", error=str(error))
            return True

    async def _leave(self, entry: tuple[str, str]) -> None:
        try:
            await call_store(lambda: self._redis.zrem(*entry))
        except StoreUnavailable as error:
            log.debug("limits.socket_not_uncounted", error=str(error))  # it falls out in time

    async def keep_renewing(self, every: float = RENEW_SECONDS) -> None:
        """For ever: renew the entries of this process, also those that the store lost."""
        while True:
            await asyncio.sleep(every)
            try:
                await self.renew()
            except (StoreUnavailable, StorageFull) as error:
                log.debug("limits.sockets_not_renewed", error=str(error))

    async def renew(self) -> None:
        """Raises StoreUnavailable, StorageFull."""
        entries = list(self._entries)
        if not entries:
            return
        now, _ = as_text(await call_store(self._redis.time))
        until = int(now) + self._seconds
        for start in range(0, len(entries), BATCH):
            await call_store(lambda s=start: self._renew(entries[s : s + BATCH], until))  # type: ignore[misc]

    async def _renew(self, entries: list[tuple[str, str]], until: float) -> Any:
        pipe = self._redis.pipeline(transaction=False)
        for key, member in entries:
            if (key, member) in self._entries:
                pipe.zadd(key, {member: until})
                pipe.expire(key, int(self._seconds) + 1)
        return await pipe.execute()

    async def left(self) -> None:
        """Wait a moment until the store knows of all sockets that closed."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=LEAVE_SECONDS)
