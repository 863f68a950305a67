"""Who is at a desk, and what each has open: kept in the store, so that all servers agree.

Each open desk writes one field of one hash and renews it. A field that was not renewed is of a
server that died: readers leave it out and remove it. It is worth nothing a minute later, so
nothing waits for the store: while that is away, the last list stands.
"""

import json
import secrets
import time
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatbot.conversation.store import as_text
from chatbot.server.auth import StaffClaims

log = structlog.get_logger()
PRESENCE = "fd:presence"  # hash: desk id -> JSON {username, role, conversations, at (Unix s)}
PRESENCE_CHANNEL = "fd:presence:changed"
MISSED = 3  # renewals after which a desk counts as gone

Agents = list[dict[str, Any]]


class Presence:
    """One per server process. ``interval``: seconds between two renewals of a desk."""

    def __init__(self, redis: Redis, interval: float) -> None:
        self._redis = redis
        self.interval = interval

    async def agents(self) -> Agents | None:
        """``[{username, role, conversations}]`` by name, the desks of one person joined; None
        while the store is away."""
        try:
            fields = as_text(await self._redis.hgetall(PRESENCE))
        except (RedisError, OSError) as error:
            log.debug("presence.not_read", error=str(error))
            return None
        now = time.time()
        found: dict[str, dict[str, Any]] = {}
        for desk, text in dict(fields).items():
            entry = json.loads(text)
            if now - entry["at"] > MISSED * self.interval:
                await self._drop(desk)
                continue
            agent = found.setdefault(entry["username"], {"role": entry["role"], "open": set()})
            agent["open"].update(entry["conversations"])
        return [
            {"username": name, "role": agent["role"], "conversations": sorted(agent["open"])}
            for name, agent in sorted(found.items())
        ]

    async def _drop(self, desk: str) -> None:
        with suppress(RedisError, OSError):
            await self._redis.hdel(PRESENCE, desk)


class DeskPresence:
    """One open desk's own entry."""

    def __init__(self, redis: Redis, claims: StaffClaims) -> None:
        self._redis = redis
        self._claims = claims
        self._desk = secrets.token_hex(8)

    async def put(self, conversations: list[str], *, changed: bool) -> None:
        """Write or renew the entry; ``changed`` tells the other desks."""
        entry = {
            "username": self._claims.username,
            "role": self._claims.role,
            "conversations": conversations,
            "at": time.time(),
        }
        with suppress(RedisError, OSError):
            await self._redis.hset(PRESENCE, self._desk, json.dumps(entry))
            if changed:
                await self._redis.publish(PRESENCE_CHANNEL, "")

    async def remove(self) -> None:
        with suppress(RedisError, OSError):
            await self._redis.hdel(PRESENCE, self._desk)
            await self._redis.publish(PRESENCE_CHANNEL, "")
