"""What the sockets of one server process share. ``create_app`` builds it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from chatbot.budgets import TokenBudgets
from chatbot.completions.exchange import Exchange
from chatbot.crew import end_tasks
from chatbot.errors import StorageFull, StoreUnavailable
from chatbot.presence import WorkerPresence
from chatbot.server.chatwoot.config import chatwoot_sites
from chatbot.server.chatwoot.forwarder import Forwarder
from chatbot.server.desk_list import DeskList
from chatbot.server.hub import Hub
from chatbot.server.limits import FrameLease, RateLimiter, SocketLimits
from chatbot.server.metrics import Metrics
from chatbot.server.open_sockets import OpenSockets
from chatbot.server.people import PeopleDesk
from chatbot.server.presence import Presence
from chatbot.server.reply_queue import QueueState, ReplyQueue
from chatbot.services import Services

log = structlog.get_logger()
CLOSES_PER_SECOND = 200  # while stopping: the other servers get as many new sockets
QUEUE_LOOK_SECONDS = 5.0  # between looks for replies that wait too long


class Room:
    """``app.state.room``."""

    def __init__(self, services: Services, limits: SocketLimits) -> None:
        self.services = services
        self.limits = limits
        self.hub = Hub(services.log, services.redis)
        self.metrics = Metrics()
        self.exchange = Exchange(
            services.redis,
            most_waiting=services.settings.api_max_waiting,
            silence=services.settings.lease_seconds,
            attempts=services.settings.max_attempts,
        )
        self.desk_list = DeskList(services.log)
        self.people = PeopleDesk(services.log, services.database)
        self.presence = Presence(services.redis, limits.presence_interval)
        self.message_rate = self._rate("messages_per_minute")
        self.address_rate = self._rate("messages_per_minute_per_address")
        self.visitor_rate = self._rate("visitors_per_minute")
        self._frame_rate = self._rate("frames_per_minute")
        self._address_frame_rate = self._rate("frames_per_minute_per_address")
        self.conversation_rate = RateLimiter(
            services.redis,
            "conversations_per_address",
            services.settings.conversations_per_address,
            services.settings.conversations_hours * 3600,
        )
        self.call_rate = self._rate("call_sessions_per_minute")
        self.fragment_rate = self._rate("call_fragments_per_minute")
        # read here, so that a mistake in the setting stops the start
        self.chatwoot = chatwoot_sites(services.settings)
        self.open_sockets = OpenSockets(services.redis)
        self.budgets = TokenBudgets(services.redis, services.settings)
        self.workers = WorkerPresence(services.redis)
        self.queue = ReplyQueue(self._look_at_queue, services.settings)
        self._tasks: list[asyncio.Task[None]] = []
        self.stopping = asyncio.Event()  # set: every socket closes with 1001
        self.goodbye_seconds = 0.0  # over which they do: clients reconnect at once, elsewhere
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    def _rate(self, limit: str) -> RateLimiter:
        """A limit of so many a minute; ``limit`` is its setting."""
        settings = self.services.settings
        return RateLimiter(self.services.redis, limit, getattr(settings, limit))

    def frame_lease(self, visitor: str, address: str) -> FrameLease:
        """What a socket of this visitor, at this address, counts its frames with."""
        return FrameLease([(self._frame_rate, visitor), (self._address_frame_rate, address)])

    async def start(self) -> None:
        """Begin to listen to the store, and to keep what is counted there true."""
        await self.hub.start()
        await self.exchange.start()
        self._tasks = [
            asyncio.create_task(self.open_sockets.keep_renewing(), name="room.sockets"),
            asyncio.create_task(self._keep_queue(), name="room.queue"),
        ]
        if self.chatwoot:
            forwarder = Forwarder(self.services, self.hub, self.chatwoot, self.limits)
            self._tasks.append(asyncio.create_task(forwarder.run(), name="room.chatwoot"))

    async def stop(self) -> None:
        await end_tasks(self._tasks)
        await self.exchange.stop()
        await self.hub.stop()
        await self.open_sockets.left()

    async def _look_at_queue(self) -> QueueState:
        jobs = await self.services.log.queue_length()
        workers = await self.workers.alive()
        return QueueState(jobs, tuple(workers.values()))

    async def _keep_queue(self) -> None:
        """For ever: give replies that nobody took to people. Any server does it for all."""
        settings = self.services.settings
        while True:
            try:
                late = await self.services.log.give_up_waiting(settings.queue_seconds)
                for _ in range(late):
                    self.metrics.limited("queue_seconds")
                state = await self._look_at_queue()
                self.metrics.queue.set(state.jobs)
                self.metrics.workers.set(len(state.workers))
                if late:
                    log.warning("room.replies_waited_too_long", replies=late)
            except (StoreUnavailable, StorageFull) as error:
                log.debug("room.queue_not_seen", error=str(error))
            await asyncio.sleep(min(QUEUE_LOOK_SECONDS, settings.queue_seconds))

    @property
    def sockets(self) -> int:
        """Websockets that are open in this process."""
        return self._open

    @contextmanager
    def open_socket(self) -> Iterator[None]:
        """Count a socket as open while the block runs."""
        self._open += 1
        self._none_open.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._none_open.set()

    async def close_sockets(self, timeout: float) -> bool:
        """Close every socket with 1001, at most ``CLOSES_PER_SECOND`` if that fits into half the
        time; False when some are left after ``timeout`` seconds. Until its turn comes a socket
        works as ever."""
        self.goodbye_seconds = min(timeout / 2, self._open / CLOSES_PER_SECOND)
        self.stopping.set()
        try:
            async with asyncio.timeout(timeout):
                await self._none_open.wait()
        except TimeoutError:
            return False
        return True
