"""From the log to Chatwoot: the bot's replies, and that it asks for people.

What went is an event of the log (``reply.forwarded``), so a restart, another server or a store that
was restored continue where it stands. Whether a message arrived whose answer was lost is asked of
Chatwoot, or seen when it comes back as a webhook, before anything is sent again. Where it cannot be
known, people are asked to look: a customer is never told the same twice.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress

import httpx
import structlog

from chatbot.conversation.events import ConversationId
from chatbot.conversation.store import call_store
from chatbot.errors import FrontdeskError, NotFound
from chatbot.server.channels import CHATWOOT
from chatbot.server.chatwoot.client import SECONDS, Chatwoot
from chatbot.server.chatwoot.config import ChatwootSite
from chatbot.server.chatwoot.sending import Sending
from chatbot.server.chatwoot.sent import note_forwarded
from chatbot.server.hub import Hub
from chatbot.server.limits import SocketLimits
from chatbot.services import Services

log = structlog.get_logger()
LOCK = "fd:chatwoot:lock:{cid}"
LOCK_SECONDS = 60
SENDING_SECONDS = 7 * 86_400
AT_ONCE = 8  # conversations
MOST_OPEN = 10_000


class Forwarder:
    """One per server process; any server may send what another one took in."""

    def __init__(
        self,
        services: Services,
        hub: Hub,
        sites: Mapping[str, ChatwootSite],
        limits: SocketLimits,
    ) -> None:
        self._services = services
        self._log = services.log
        self._hub = hub
        self._sites = sites
        self._retry = limits.chatwoot_retry
        self.echo_seconds = limits.chatwoot_echo
        self.pause = self._retry[0]
        self._later: dict[ConversationId, float] = {}  # loop time
        self._failures: dict[ConversationId, int] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(
            timeout=SECONDS, follow_redirects=False, trust_env=False
        ) as http:
            with self._hub.watch_all() as watcher:
                due: set[ConversationId] | None = None  # all
                while True:
                    names = await self._open() if due is None else due
                    await asyncio.gather(
                        *(self._serve(http, n) for n in names if n.startswith(CHATWOOT))
                    )
                    pause = min(self._later.values(), default=loop.time() + 60) - loop.time()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(pause, 0)):
                            await watcher.wait()
                    changed, now = watcher.take(), loop.time()
                    ripe = {name for name, at in self._later.items() if at <= now}
                    due = None if changed is None else changed | ripe

    async def _open(self) -> set[ConversationId]:
        try:
            heads = await self._log.open_conversations(self._sites, MOST_OPEN)
        except FrontdeskError as error:
            log.warning("chatwoot.store_away", error=str(error))
            return set(self._later)
        return {head.conversation_id for head in heads}

    async def _serve(self, http: httpx.AsyncClient, name: ConversationId) -> None:
        self._later.pop(name, None)
        try:
            async with self._room:
                waits = await self._bring(http, name)
        except FrontdeskError as error:
            failures = self._failures[name] = self._failures.get(name, 0) + 1
            first, longest = self._retry
            waits = min(longest, first * 2 ** (failures - 1))
            log.warning("chatwoot.not_sent", conversation=name, error=str(error), retry_in=waits)
        except Exception:  # a bug with one conversation must not keep the others
            log.exception("chatwoot.bug", conversation=name)
            waits = self._retry[1]
        else:
            self._failures.pop(name, None)
        if waits is not None:
            self._later[name] = asyncio.get_running_loop().time() + waits

    async def _bring(self, http: httpx.AsyncClient, name: ConversationId) -> float | None:
        """Send what Chatwoot lacks, one server at a time; seconds until it must be looked at
        again."""
        redis, lock, mine = self._services.redis, LOCK.format(cid=name), secrets.token_hex(8)
        if not await call_store(lambda: redis.set(lock, mine, nx=True, ex=LOCK_SECONDS)):
            return self._retry[0]  # another server is at it
        try:
            head = await self._log.head(name)
            config = self._sites.get(head.site) if head is not None else None
            if config is None:
                return None  # erased, or the site's Chatwoot was taken out of the settings
            events = await self._log.read(name)
            return await Sending(self, Chatwoot(http, config), name, events).run()
        except NotFound:
            return None  # erased meanwhile
        finally:
            if await call_store(lambda: redis.get(lock)) == mine:  # else it took too long
                await call_store(lambda: redis.delete(lock))

    async def sent_before(self, key: str) -> float | None:
        """Seconds since it was sent with no answer; None: it was not."""
        at = await call_store(lambda: self._services.redis.get(key))
        return None if at is None else max(0.0, time.time() - float(at))

    async def mark(self, key: str) -> None:
        redis = self._services.redis
        await call_store(lambda: redis.set(key, time.time(), ex=SENDING_SECONDS))

    async def unmark(self, key: str) -> None:
        await call_store(lambda: self._services.redis.delete(key))

    async def note(self, name: ConversationId, offset: int, outcome: str) -> None:
        await note_forwarded(self._services, name, offset, outcome)
