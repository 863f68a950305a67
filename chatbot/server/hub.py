"""Wakes the sockets of this process when their conversation changed.

One reader of ``log.changes()`` serves all sockets. A watcher is an event flag, not a queue: a
thousand notifications while a socket is busy are one wake-up, so memory is bounded by
construction, and what changed is read from the log with the socket's own cursor.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatbot.assist.board import ASSIST_CHANNEL
from chatbot.conversation.events import ConversationId
from chatbot.conversation.interface import ConversationLog
from chatbot.crew import end_tasks
from chatbot.errors import FrontdeskError
from chatbot.server.presence import PRESENCE_CHANNEL

log = structlog.get_logger()
TYPING_CHANNEL = "fd:typing"
FIRST_RETRY = 0.25  # seconds
LAST_RETRY = 10.0
MANY = 1000  # changed conversations that a desk's watcher remembers one by one


class Watcher:
    """Woken when one conversation changed. ``typing`` is set when its visitor types, ``drafts``
    when the drafts for its agent changed."""

    __slots__ = ("_event", "drafts", "typing")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.typing = False
        self.drafts = False

    def take_drafts(self) -> bool:
        """Whether drafts changed since the last call."""
        changed, self.drafts = self.drafts, False
        return changed

    def wake(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Return once per wake-up; several wake-ups may be one."""
        await self._event.wait()
        self._event.clear()


class AnyWatcher(Watcher):
    """Woken when any conversation changed; says which, or that all must be looked at."""

    __slots__ = ("_all", "_changed", "_presence")

    def __init__(self) -> None:
        super().__init__()
        self._changed: set[ConversationId] = set()
        self._all = False
        self._presence = False

    def mark_presence(self) -> None:
        self._presence = True
        self.wake()

    def take_presence(self) -> bool:
        """Whether somebody came, went or looks at something else since the last call."""
        marked, self._presence = self._presence, False
        return marked

    def mark(self, conversation_id: ConversationId | None) -> None:
        if conversation_id is None or len(self._changed) >= MANY:
            self._all = True
            self._changed.clear()
        elif not self._all:
            self._changed.add(conversation_id)
        self.wake()

    def take(self) -> set[ConversationId] | None:
        """What changed since the last call; None means anything."""
        changed = None if self._all else self._changed
        self._changed, self._all = set(), False
        return changed


class Hub:
    """Start it once per process; see the module's text."""

    def __init__(self, conversations: ConversationLog, redis: Redis) -> None:
        self._log = conversations
        self._redis = redis
        self._watchers: defaultdict[ConversationId, set[Watcher]] = defaultdict(set)
        self._any: set[AnyWatcher] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._keep(self._follow_log, "log"), name="hub.log"),
            asyncio.create_task(self._keep(self._follow_people, "people"), name="hub.people"),
        ]

    async def stop(self) -> None:
        await end_tasks(self._tasks)
        self._tasks = []

    @contextmanager
    def watch(self, conversation_id: ConversationId) -> Iterator[Watcher]:
        """Be woken by every change. Read the log only after entering: then nothing is missed."""
        watcher = Watcher()
        self._watchers[conversation_id].add(watcher)
        try:
            yield watcher
        finally:
            left = self._watchers[conversation_id]
            left.discard(watcher)
            if not left:
                del self._watchers[conversation_id]

    @contextmanager
    def watch_all(self) -> Iterator[AnyWatcher]:
        """Be woken by changes of every conversation: the desk's list."""
        watcher = AnyWatcher()
        self._any.add(watcher)
        try:
            yield watcher
        finally:
            self._any.discard(watcher)

    async def typing(self, conversation_id: ConversationId) -> None:
        """Tell the desks of all servers that the visitor types. It is worth nothing a second
        later, so it is not kept, and lost while the store is away."""
        try:
            await self._redis.publish(TYPING_CHANNEL, conversation_id)
        except (RedisError, OSError) as error:
            log.debug("hub.typing_lost", error=str(error))

    def _wake(self, conversation_id: ConversationId | None) -> None:
        if conversation_id is None:
            for watchers in self._watchers.values():
                for watcher in watchers:
                    watcher.wake()
        else:
            for watcher in self._watchers.get(conversation_id, ()):
                watcher.wake()
        for desk in self._any:
            desk.mark(conversation_id)

    def look_at_presence(self) -> None:
        """Let every desk of this process read who is there."""
        for desk in self._any:
            desk.mark_presence()

    async def _follow_log(self) -> None:
        async for conversation_id in self._log.changes():
            self._wake(conversation_id)

    async def _follow_people(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(TYPING_CHANNEL, PRESENCE_CHANNEL, ASSIST_CHANNEL)
            async for message in channel.listen():
                if message["channel"] == PRESENCE_CHANNEL:
                    self.look_at_presence()
                    continue
                for watcher in self._watchers.get(ConversationId(message["data"]), ()):
                    if message["channel"] == TYPING_CHANNEL:
                        watcher.typing = True
                    else:
                        watcher.drafts = True
                    watcher.wake()

    async def _keep(self, follow: Callable[[], Awaitable[None]], name: str) -> None:
        """Follow for ever: a lost subscription is logged and made again, with back-off."""
        loop = asyncio.get_running_loop()
        pause = FIRST_RETRY
        while True:
            began = loop.time()
            try:
                await follow()
                why = "it ended"
            except (FrontdeskError, RedisError, OSError) as error:
                why = str(error)
            if loop.time() - began > LAST_RETRY:
                pause = FIRST_RETRY
            log.warning("hub.subscription_lost", of=name, why=why, retry_in=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_RETRY)
            if name == "log":
                self._wake(None)
