"""The store under the log: Lua scripts, and what its errors mean to the rest of the product."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.cluster import PipelineCommand, RedisCluster
from redis.exceptions import (
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from chatbot.errors import InputError, SettingsError, StorageFull, StoreUnavailable

LUA = Path(__file__).parent / "lua"
T = TypeVar("T")
# Longest wait for the disk, in ms: with `appendfsync everysec` it is a second at most, and the
# connection's own time-out (5 s in redis-py) must not come first.
DISK_MS = 3000
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
def _closed_connections() -> Iterator[None]:
    """A connection that another task closes while it is written to is one that is lost; redis-py
    8.1 lets out an AttributeError of its own then."""
    try:
        yield
    except AttributeError as error:
        *_, last = walk_tb(error.__traceback__)
        if not str(last[0].f_globals.get("__name__", "")).startswith("redis."):
            raise
        raise ConnectionError("the connection was closed") from error


@contextmanager
def store_errors() -> Iterator[None]:
    """Every call of the store runs inside: StoreUnavailable or StorageFull, with the cause."""
    try:
        with _closed_connections():
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
                with _closed_connections():
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

    async def run(
        self, name: str, keys: Sequence[str], *args: str | int, sync: str = ""
    ) -> list[Any]:
        """Run a script and return its reply, decoded. With ``sync``, a key of the same lane, only
        when everything that the store had written by then is on its disk.

        Raises:
            StoreUnavailable, StorageFull
            InputError: an argument is not Unicode text.
        """
        try:
            return await self._call(name, keys, args, sync)
        except UnicodeEncodeError:
            raise InputError(
                "the text holds half of a surrogate pair: send whole characters"
            ) from None

    async def _call(
        self, name: str, keys: Sequence[str], args: tuple[str | int, ...], sync: str
    ) -> list[Any]:
        parts = (len(keys), *keys, self._publish, *args)

        async def evaluate() -> Any:
            if sync:
                return await self._on_disk(name, parts, sync)
            try:
                return await self._redis.evalsha(self._sha[name], *parts)
            except NoScriptError:
                return await self._redis.eval(self._source[name], *parts)

        decoded: list[Any] = as_text(await call_store(evaluate))
        return decoded

    async def _on_disk(self, name: str, parts: Sequence[str | int], sync: str) -> Any:
        """Run a script and wait for the disk. All goes over one connection: after a restart in
        between, the wait of another one would vouch for what is lost. The SET is there because
        WAITAOF waits for the connection's own last write, and the script may have written nothing
        (the message was there already, from a connection that did not live to see it synced)."""
        for script in (("EVALSHA", self._sha[name]), ("EVAL", self._source[name])):
            commands = ((*script, *parts), ("SET", sync, "1"), ("WAITAOF", 1, 0, DISK_MS))
            reply, written, synced = await self._on_one_connection(commands, sync)
            if not isinstance(reply, NoScriptError):
                break
        for result in (reply, written, synced):
            if isinstance(result, Exception):
                raise result
        if synced[0] < 1:
            raise StoreUnavailable(
                f"the conversation store did not write to its disk within {DISK_MS / 1000:.0f} s: "
                "try again"
            )
        return reply

    async def _on_one_connection(
        self, commands: Sequence[tuple[str | int, ...]], key: str
    ) -> list[Any]:
        """Results, also errors, of commands for the server that holds ``key``. A cluster's own
        pipeline would not do: it sends again what failed, over any connection."""
        if not self.clustered:
            async with self._redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                found: list[Any] = await pipe.execute(raise_on_error=False)
                return found
        await self._redis.initialize()
        sent = [PipelineCommand(place, *command) for place, command in enumerate(commands)]
        await self._redis.get_node_from_key(key).execute_pipeline(sent)
        return [command.result for command in sent]


async def always_synced(redis: Redis) -> bool:
    """Whether every server of the store answers only what is on its disk by itself: Redis before
    7.2 with ``appendfsync always``. The others are asked to (WAITAOF).

    Raises:
        SettingsError: it has no WAITAOF and does not do so, or writes no append-only file.
        StoreUnavailable
    """
    clustered = isinstance(redis, RedisCluster)
    with store_errors():
        await redis.initialize()
        servers = [{"target_nodes": node} for node in redis.get_primaries()] if clustered else [{}]
        return all([await _always_synced(redis, server) for server in servers])


async def _always_synced(redis: Redis, server: dict[str, Any]) -> bool:
    try:
        await redis.execute_command("WAITAOF", 1, 0, 1, **server)
    except ResponseError as error:
        if "unknown command" not in str(error):
            raise SettingsError(f"FRONTDESK_ACKNOWLEDGE=disk: the store says {error}") from None
    else:
        return False
    found = await redis.execute_command("CONFIG GET", "append*", **server)
    config = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
    if (config.get("appendonly"), config.get("appendfsync")) != ("yes", "always"):
        raise SettingsError(
            "FRONTDESK_ACKNOWLEDGE=disk needs a store that has WAITAOF (Redis 7.2, Valkey), or one "
            "with `appendonly yes` and `appendfsync always`"
        )
    return True
