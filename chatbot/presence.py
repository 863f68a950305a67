"""Which workers are alive, and how fast they are: each says so every few seconds.

One hash, a field per worker. A worker that says nothing for ``ALIVE_SECONDS`` is taken for
dead, and its field is removed. Times are the store's, so clocks of machines do not matter.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from redis.asyncio import Redis

from chatbot.conversation.store import as_text, call_store

KEY = "fd:workers"
TELL_SECONDS = 2.0  # a worker says that it is alive this often
ALIVE_SECONDS = 10.0  # and is dead after a silence of this

_TELL = """
redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
"""
_ALIVE = """
return { redis.call('TIME')[1], redis.call('HGETALL', KEYS[1]) }
"""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker says of itself. ``seconds_per_reply``: mean of its last replies, from taking
    one to its end; None before the first."""

    slots: int  # replies that it writes at once
    running: int
    seconds_per_reply: float | None


class WorkerPresence:
    """The workers of one installation."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._tell = redis.register_script(_TELL)
        self._alive = redis.register_script(_ALIVE)

    async def tell(self, name: str, state: WorkerState) -> None:
        """Say that the worker ``name`` is alive. Raises StoreUnavailable, StorageFull."""
        text = json.dumps(asdict(state))
        await call_store(lambda: self._tell(keys=[KEY], args=[name, text]))

    async def leave(self, name: str) -> None:
        """The worker stops taking replies. Raises StoreUnavailable."""
        await call_store(lambda: self._redis.hdel(KEY, name))

    async def alive(self) -> dict[str, WorkerState]:
        """The workers that said so lately, by name. Raises StoreUnavailable."""
        now, flat = as_text(await call_store(lambda: self._alive(keys=[KEY])))
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        found: dict[str, WorkerState] = {}
        for name, value in pairs:
            at, _, text = value.partition(" ")
            if int(now) - int(at) <= ALIVE_SECONDS:
                found[name] = _state(json.loads(text))
            else:
                await call_store(lambda name=name: self._redis.hdel(KEY, name))  # type: ignore[misc]
        return found


def _state(fields: dict[str, Any]) -> WorkerState:
    return WorkerState(
        int(fields["slots"]), int(fields["running"]), fields.get("seconds_per_reply")
    )
