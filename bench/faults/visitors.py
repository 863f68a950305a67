"""Visitors that record all they sent, were acknowledged and saw."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from bench.faults.place import Place
from bench.faults.proxy import Proxy
from chatbot.client import Backoff, ChatClient, Heartbeat
from chatbot.client_state import (
    Accepted,
    Connected,
    Disconnected,
    ReplyEnded,
    ReplyStarted,
    ReplyText,
    Said,
    StatusChanged,
    Update,
)

BACKOFF = Backoff(base=0.05, most=0.5)
HEARTBEAT = Heartbeat(interval=0.4, answer=0.6)
Watch = Callable[["Visitor", Update], None]


@dataclass(slots=True)
class Visitor:
    """What one visitor did and saw. Times are of the monotonic clock, in seconds."""

    name: str
    proxy: Proxy
    client: ChatClient
    sent: dict[str, str] = field(default_factory=dict)  # client_message_id -> text
    acknowledged: Counter[str] = field(default_factory=Counter)  # times it was told
    said: Counter[int] = field(default_factory=Counter)  # offset -> times shown since reload
    streamed: dict[str, str] = field(default_factory=dict)  # reply_id -> as put together
    ended: dict[str, tuple[str, str]] = field(default_factory=dict)  # -> (finish reason, text)
    open: set[str] = field(default_factory=set)  # messages that no reply ended after yet
    answered: set[str] = field(default_factory=set)
    endings: Counter[str] = field(default_factory=Counter)  # times a reply's end was shown
    rewritten: int = 0  # shown text that changed without a word of warning
    reloads: int = 0
    reconnects: int = 0
    longest_gap: float = 0.0  # between two signs of life while a reply was due
    waits: list[float] = field(default_factory=list)  # from sending to the acknowledgement
    _sent_at: dict[str, float] = field(default_factory=dict)
    _seen_at: float = 0.0
    watch: Watch | None = None  # is shown every update, after it was recorded
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, text: str) -> str:
        """Send, without waiting for anything."""
        message_id = f"m-{secrets.token_hex(8)}"
        self.sent[message_id] = text
        self._seen_at = self._sent_at[message_id] = time.monotonic()
        await self.client.send(text, message_id)
        return message_id

    async def ask(self, text: str, seconds: float) -> bool:
        """Send, and wait until it is acknowledged and a reply ended after it; False if not."""
        message_id = await self.say(text)
        return await self.until(
            lambda: message_id in self.acknowledged and message_id in self.answered, seconds
        )

    async def until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Wait for what the updates may bring; False when it did not come."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            return False
        return True

    async def listen(self) -> None:
        """Record updates for ever."""
        async for update in self.client.updates():
            self._record(update)
            if self.watch is not None:
                self.watch(self, update)
            self.news.set()

    def _record(self, update: Update) -> None:
        match update:
            case Connected(recovered=recovered):
                self.reconnects += 1
                if not recovered:  # told so: what follows is all anew
                    self.reloads += 1
                    self.said.clear()
                    self.streamed.clear()
                    self.ended.clear()
                    self.endings.clear()
                    self.open.clear()
                    self.answered.clear()
            case Disconnected():
                pass
            case Accepted(client_message_id=message_id):
                self.acknowledged[message_id] += 1
                if message_id in self._sent_at:
                    self.waits.append(time.monotonic() - self._sent_at.pop(message_id))
            case Said(offset=offset, client_message_id=message_id):
                self.said[offset] += 1
                self.open.add(message_id)
            case ReplyStarted(reply_id=reply_id):
                self.streamed[reply_id] = ""
                self._sign_of_life()
            case ReplyText(reply_id=reply_id, text=text, so_far=so_far):
                if self.streamed.get(reply_id, "") + text != so_far:
                    self.rewritten += 1
                self.streamed[reply_id] = so_far
                self._sign_of_life()
            case ReplyEnded(reply_id=reply_id, text=text, finish_reason=reason):
                self.ended[reply_id] = (reason, text)
                self.endings[reply_id] += 1
                self.answered |= self.open
                self.open.clear()
                self._sign_of_life()
            case StatusChanged():
                self._sign_of_life()

    def _sign_of_life(self) -> None:
        now = time.monotonic()
        if self._seen_at:
            self.longest_gap = max(self.longest_gap, now - self._seen_at)
        self._seen_at = now

    def rest(self) -> None:
        """Nothing is due: the time until the next message is no gap."""
        self._seen_at = 0.0


@asynccontextmanager
async def visiting(
    place: Place, name: str, heartbeat: Heartbeat = HEARTBEAT
) -> AsyncIterator[Visitor]:
    """A visitor with a proxy of its own in front of all servers."""
    async with Proxy(place.ports) as proxy:
        client = ChatClient(
            proxy.url,
            "demo",
            token=place.token(name),
            backoff=BACKOFF,
            heartbeat=heartbeat,
        )
        async with client:
            visitor = Visitor(name, proxy, client)
            listening = asyncio.create_task(visitor.listen())
            try:
                yield visitor
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


@asynccontextmanager
async def crowd(place: Place, count: int, prefix: str = "v") -> AsyncIterator[list[Visitor]]:
    """Many visitors."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(visiting(place, f"{prefix}-{number}"))
            for number in range(count)
        ]
