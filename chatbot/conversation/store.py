"""The store under the log: Lua scripts, and what its errors mean to the rest of the product."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
)

from chatbot.errors import InputError, StorageFull, StoreUnavailable

LUA = Path(__file__).parent / "lua"
T = TypeVar("T")
RECONNECTS = 2  # tries after the first, of a call that met a dead connection
ALONE = frozenset({"take"})  # scripts of lanes, not of one conversation: without common.lua

# Error replies that mean "no room"; MISCONF is sent when the last save to disk failed.
_FULL = ("OOM ", "MISCONF", "NO SPACE LEFT")


def map_store_error(error: BaseException) -> StorageFull | StoreUnavailable:
    """The product's error for one of redis-py's. Its text names no address and no data."""
    text = str(error).upper()
    if isinstance(error, OutOfMemoryError) or any(sign in text for sign in _FULL):
        return StorageFull(
            "the conversation store has no room: free memory or disk space, then try again"
        )
    return StoreUnavailable(
        f"the conversation store cannot be used now ({type(error).__name__}): try again soon"
    )


@contextmanager
def store_errors() -> Iterator[None]:
    """Every call of the store runs inside: StoreUnavailable or StorageFull, with the cause."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise map_store_error(error) from error


async def call_store(call: Callable[[], Awaitable[T]]) -> T:
    """The result of ``call``, tried again at once when its connection turns out to be dead: pools
    keep connections over a restart of the store. So ``call`` may have had its effect already, and
    must bear to be repeated.

    Raises:
        StoreUnavailable, StorageFull
    """
    with store_errors():
        for _ in range(RECONNECTS):
            try:
                return await call()
            except ConnectionError:
                continue
        return await call()


def as_text(value: Any) -> Any:
    """A reply with all bytes decoded, also nested: clients may or may not decode themselves."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return value


class Scripts:
    """The Lua scripts of ``lua/``. Each runs by its SHA1, and is loaded again when the store
    forgot it (a restart, a fail-over, SCRIPT FLUSH)."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.clustered = isinstance(redis, RedisCluster)
        self._publish = "SPUBLISH" if self.clustered else "PUBLISH"
        common = (LUA / "common.lua").read_text()
        self._source: dict[str, str] = {}
        for path in sorted(LUA.glob("*.lua")):
            if path.stem != "common":
                prefix = "" if path.stem in ALONE else common
                self._source[path.stem] = prefix + path.read_text()
        self._sha = {
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self._source.items()
        }

    async def run(self, name: str, keys: Sequence[str], *args: str | int) -> list[Any]:
        """Run a script and return its reply, decoded.

        Raises:
            StoreUnavailable, StorageFull
            InputError: an argument is not Unicode text.
        """
        try:
            return await self._call(name, keys, args)
        except UnicodeEncodeError:
            raise InputError(
                "the text holds half of a surrogate pair: send whole characters"
            ) from None

    async def _call(self, name: str, keys: Sequence[str], args: tuple[str | int, ...]) -> list[Any]:
        parts = (len(keys), *keys, self._publish, *args)

        async def evaluate() -> Any:
            try:
                return await self._redis.evalsha(self._sha[name], *parts)
            except NoScriptError:
                return await self._redis.eval(self._source[name], *parts)

        decoded: list[Any] = as_text(await call_store(evaluate))
        return decoded
