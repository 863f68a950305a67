"""What one visitor, one address and one socket may do. How much is in the settings; the name of a
setting is the name of its limit, in the metrics and in ``data["limit"]`` of the exception.

Rates that must hold across sockets and servers are counted in Redis; what concerns one socket is
counted in its process (docs/decisions/0015-limits-and-operations.md).
"""

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from chatbot.budgets import readable_time
from chatbot.conversation.store import store_errors
from chatbot.errors import FrontdeskError, RateLimited, StorageFull, StoreUnavailable

log = structlog.get_logger()
MINUTE = 60.0
LEASED_FRAMES = 20  # frames that a socket asks the store for at once


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """Times in seconds. They are no settings: nobody needs to tune them, tests shorten them."""

    close_timeout: float = 2.0
    store_retries: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)  # pauses of a reader of the log
    typing_interval: float = 2.0
    staff_recheck: float = 30.0  # how long a removed account can keep its desk open
    presence_interval: float = 15.0  # a desk says so often that it is still there
    queue_interval: float = 0.25  # the desk's list is sent at most this often
    chatwoot_retry: tuple[float, float] = (1.0, 60.0)  # until a second try; the longest pause
    chatwoot_echo: float = 60.0  # so long a message may take to come back as a webhook


def limit_of(problem: FrontdeskError) -> str | None:
    """The limit that was reached, if that is what went wrong."""
    limit = problem.data.get("limit")
    return None if limit is None else str(limit)


def counted_address(address: str) -> str:
    """What is counted as one address: an IPv4 address, or the /64 network of an IPv6 address, which
    one customer of a provider has for himself (RFC 6177)."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip.packed[:8] + bytes(8), 64)))
    return str(ip)


# The generic cell rate algorithm (ITU-T I.371): one number per key, no window edges. The store's
# clock is used, so that servers whose clocks differ agree.
_TAKE = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local interval = tonumber(ARGV[1])
local burst = tonumber(ARGV[2])
local count = tonumber(ARGV[3])
local due = tonumber(redis.call('GET', KEYS[1]) or 0)
if due < now then due = now end
local wait = due + count * interval - burst * interval - now
if wait > 1e-9 then return string.format('%.6f', wait) end
due = due + count * interval
redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000) + 1)
return '0'
"""


class RateLimiter:
    """``most`` of something in ``seconds`` for each subject, all of them at once if need be.

    Args:
        limit: the setting that ``most`` comes from.
    """

    def __init__(self, redis: Redis, limit: str, most: int, seconds: float = MINUTE) -> None:
        self._limit = limit
        self._most = most
        self._seconds = seconds
        self._script = redis.register_script(_TAKE)

    async def take(self, subject: str, what: str, count: int = 1) -> None:
        """Count ``count`` of them.

        Raises:
            RateLimited: too many; ``retry_after`` says when as many are allowed.
            StoreUnavailable, StorageFull
        """
        args = [self._seconds / self._most, self._most, min(count, self._most)]
        with store_errors():
            wait = float(await self._script(keys=[f"fd:rate:{self._limit}:{subject}"], args=args))
        if wait > 0:
            span = "a minute" if self._seconds == MINUTE else f"in {readable_time(self._seconds)}"
            raise RateLimited(
                f"too many {what}: at most {self._most} {span}; wait {readable_time(wait)}",
                retry_after=max(wait, 0.1),
                limit=self._limit,
            )


class FrameBudget:
    """Frames of one socket: a token bucket in memory."""

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] | None = None
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._clock = clock or asyncio.get_running_loop().time
        self._at = self._clock()

    def take(self) -> bool:
        """Count one frame; False when there are too many."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class FrameLease:
    """Frames of a visitor and of an address over all sockets and servers: a socket takes
    ``LEASED_FRAMES`` at a time, so that most frames cost no round trip."""

    def __init__(self, limiters: list[tuple[RateLimiter, str]]) -> None:
        self._limiters = limiters  # with the subject of each
        self._left = 0

    async def take(self) -> None:
        """Count one frame. Goes on uncounted while the store is away: the socket's own budget
        holds then too.

        Raises:
            RateLimited
        """
        if self._left > 0:
            self._left -= 1
            return
        try:
            for limiter, subject in self._limiters:
                await limiter.take(subject, "frames", LEASED_FRAMES)
        except (StoreUnavailable, StorageFull) as error:
            log.debug("limits.frames_not_counted", error=str(error))
        self._left = LEASED_FRAMES - 1
