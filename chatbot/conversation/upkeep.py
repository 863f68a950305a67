"""What rules and people's rights do to logs on Redis: close idle ones, find a person's, erase."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from chatbot.conversation import keys
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.store import Scripts, as_text, call_store, store_errors
from chatbot.errors import NotFound, StoreUnavailable

PAGE = 200  # members of a sorted set, or heads, that are looked at in one step


class Upkeep:
    """This part of :class:`chatbot.conversation.log.RedisLog`."""

    _redis: Redis
    _scripts: Scripts
    _wait_for_disk: bool

    @abstractmethod
    async def _run(
        self, script: str, conversation_id: ConversationId, *args: str | int
    ) -> list[Any]: ...

    async def now_ms(self) -> int:
        seconds, microseconds = await call_store(self._redis.time)
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def run_id(self) -> str:
        try:
            with store_errors():
                info: Any = await self._redis.info("server")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, NoPermissionError):
                return "unknown"  # docs/decisions/0004-conversation-log.md: restarts are not seen
            raise
        if "run_id" in info:
            return str(info["run_id"])
        return ",".join(sorted(str(node.get("run_id")) for node in info.values()))  # a cluster

    async def erase(
        self, conversation_id: ConversationId, erased_at: int, only_before: int | None = None
    ) -> bool | None:
        reply = await self._scripts.run(
            "erase",
            keys.keys_of(conversation_id).as_list(),
            conversation_id,
            erased_at,
            "" if only_before is None else only_before,
            sync=keys.sync_key(conversation_id) if self._wait_for_disk else "",
        )
        return None if reply[0] == "busy" else bool(reply[1])

    async def close_idle(self, conversation_id: ConversationId, last_active: int) -> bool:
        try:
            reply = await self._run("idle", conversation_id, last_active)
        except NotFound:
            return False
        return bool(reply[1])

    async def idle(self, last_active: int) -> AsyncIterator[tuple[ConversationId, str, int]]:
        for lane in keys.lane_keys(keys.OPEN):
            start = 0
            while True:
                page = await call_store(
                    lambda lane=lane, start=start: self._redis.zrange(  # type: ignore[misc]
                        lane, "-inf", last_active, byscore=True, offset=start, num=PAGE,
                        withscores=True,
                    )
                )  # fmt: skip
                found = [(ConversationId(as_text(name)), int(score)) for name, score in page]
                sites = await self._fields([name for name, _ in found], "site")
                for (name, score), (site,) in zip(found, sites, strict=True):
                    if site is not None:
                        yield name, site, score
                if len(page) < PAGE:
                    break
                # what the caller closed meanwhile is not there any more: the next round sees
                # whom this step over their places misses
                start += PAGE

    async def conversations_of(
        self, site: str, visitor: VisitorId, until: int
    ) -> list[ConversationId]:
        found: list[ConversationId] = []
        batch: list[ConversationId] = []
        with store_errors():
            async for name in self._redis.scan_iter(match=keys.HEADS, count=1000):
                batch.append(ConversationId(str(as_text(name)).partition(":head:")[2]))
                if len(batch) >= PAGE:
                    found += await self._owned(batch, site, visitor, until)
                    batch = []
        return list(dict.fromkeys(found + await self._owned(batch, site, visitor, until)))

    async def _owned(
        self, names: list[ConversationId], site: str, visitor: VisitorId, until: int
    ) -> list[ConversationId]:
        heads = await self._fields(names, "site", "visitor", "created")
        return [
            name
            for name, (of_site, of_visitor, created) in zip(names, heads, strict=True)
            if (of_site, of_visitor) == (site, visitor) and int(created or 0) <= until
        ]

    async def _fields(self, names: list[ConversationId], *fields: str) -> list[list[str | None]]:
        """These fields of each head, all None where there is none."""
        if not names:
            return []

        async def read() -> Any:
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hmget(keys.keys_of(name).head, list(fields))
                return await pipe.execute()

        return [list(as_text(values)) for values in await call_store(read)]
