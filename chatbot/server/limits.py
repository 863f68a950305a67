"""What one visitor, one address and one socket may do.

Rates that must hold across sockets and servers are counted in Redis; what concerns one socket
is counted in its process.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from chatbot.conversation.store import store_errors
from chatbot.errors import RateLimited


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """Times in seconds. They are no settings: nobody needs to tune them, tests shorten them."""

    hello_timeout: float = 10.0
    send_timeout: float = 10.0  # a peer that takes no frame for so long is a slow reader
    close_timeout: float = 2.0
    store_retries: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)  # pauses of a reader of the log
    frames_per_second: float = 20.0
    frame_burst: float = 100.0
    sockets_per_visitor: int = 20  # tabs, per server process
    visitors_per_minute: int = 60  # new tokens per address
    typing_interval: float = 2.0
    staff_recheck: float = 30.0  # how long a removed account can keep its desk open
    presence_interval: float = 15.0  # a desk says so often that it is still there
    queue_interval: float = 0.25  # the desk's list is sent at most this often


# The generic cell rate algorithm (ITU-T I.371): one number per key, no window edges. The store's
# clock is used, so that servers whose clocks differ agree.
_TAKE = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local interval = tonumber(ARGV[1])
local burst = tonumber(ARGV[2])
local due = tonumber(redis.call('GET', KEYS[1]) or 0)
if due < now then due = now end
local wait = due + interval - burst * interval - now
if wait > 0 then return string.format('%.6f', wait) end
due = due + interval
redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000) + 1)
return '0'
"""


class RateLimiter:
    """``per_minute`` of something for each subject, all of them at once if need be."""

    def __init__(self, redis: Redis, name: str, per_minute: int) -> None:
        self._name = name
        self._per_minute = per_minute
        self._redis = redis
        self._script = redis.register_script(_TAKE)

    async def take(self, subject: str, what: str) -> None:
        """Count one.

        Raises:
            RateLimited: too many; ``retry_after`` says when one more is allowed.
            StoreUnavailable, StorageFull
        """
        interval = 60.0 / self._per_minute
        key = f"fd:rate:{self._name}:{subject}"
        with store_errors():
            wait = float(await self._script(keys=[key], args=[interval, self._per_minute]))
        if wait > 0:
            raise RateLimited(
                f"too many {what}: at most {self._per_minute} a minute; wait {wait:.0f} s",
                retry_after=max(wait, 0.1),
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


class OpenSockets:
    """Open sockets of each visitor in this process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, subject: str) -> Iterator[None]:
        """Count one socket while the block runs.

        Raises:
            RateLimited: the subject has too many already.
        """
        if self._open[subject] >= self._most:
            raise RateLimited(
                f"too many open connections: at most {self._most}; close some", retry_after=10.0
            )
        self._open[subject] += 1
        try:
            yield
        finally:
            self._open[subject] -= 1
            if not self._open[subject]:
                del self._open[subject]
