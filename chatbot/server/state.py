"""What the sockets of one server process share. ``create_app`` builds it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from chatbot.completions.exchange import Exchange
from chatbot.server.desk_list import DeskList
from chatbot.server.hub import Hub
from chatbot.server.limits import OpenSockets, RateLimiter, SocketLimits
from chatbot.server.metrics import Metrics
from chatbot.server.people import PeopleDesk
from chatbot.server.presence import Presence
from chatbot.services import Services


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
        self.message_rate = RateLimiter(
            services.redis, "messages", services.settings.messages_per_minute
        )
        self.visitor_rate = RateLimiter(services.redis, "visitors", limits.visitors_per_minute)
        self.visitor_sockets = OpenSockets(limits.sockets_per_visitor)
        self.stopping = asyncio.Event()  # set: every socket closes with 1001
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

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
        """Close every socket with 1001; False when some are left after ``timeout`` seconds."""
        self.stopping.set()
        try:
            async with asyncio.timeout(timeout):
                await self._none_open.wait()
        except TimeoutError:
            return False
        return True
