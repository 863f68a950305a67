"""A worker's side: its events on their way to the servers that wait for them.

One channel for each server that has requests here. All events that came up since a channel's
last write are one write: with sixteen replies in a batch that is one operation a step, however
slow or fast the store is. The same operation brings back which requests nobody waits for.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import structlog
from redis.asyncio import Redis

from chatbot.completions import keys
from chatbot.completions.queue import JobQueue
from chatbot.completions.wire import Ended, Event, Failed, Released, Started, Text, dump_batch
from chatbot.conversation.store import as_text, call_store
from chatbot.crew import end_tasks
from chatbot.errors import StorageFull, StoreUnavailable

log = structlog.get_logger()

HEARTBEAT = 1.0  # seconds between writes at least, while a server waits for something
STORE_PATIENCE = 10.0  # seconds that a write is tried again
STORE_RETRY = 0.25
KEPT_BATCHES = 2000  # a server reads at once; one that does not will see a gap, and say so

# Nothing is written for a server that is gone: its stream has expired.
_WRITE = """
local id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', 'MAXLEN', '~', ARGV[1], '*',
                      'c', ARGV[2], 'n', ARGV[3], 'e', ARGV[4])
if not id then return false end
local stops = redis.call('SMEMBERS', KEYS[2])
if #stops > 0 then redis.call('DEL', KEYS[2]) end
return stops
"""


class Line:
    """One request's way to its server."""

    def __init__(self, channel: "Channel", request_id: str) -> None:
        self._channel = channel
        self._request_id = request_id
        self.has_text = False
        self.ended = False

    def text(self, text: str) -> None:
        self.has_text = True
        self._channel.add_text(self._request_id, text)

    def end(self, event: Ended | Failed | Released) -> None:
        """The last word; what comes after it is not sent."""
        if not self.ended:
            self.ended = True
            self._channel.add(self._request_id, event)


class Channel:
    """The way from one worker to one server, while requests are open."""

    def __init__(
        self, outbox: "Outbox", server: str, name: str, cancel: Callable[[str], None]
    ) -> None:
        self._outbox = outbox
        self._cancel = cancel
        self._keys = [keys.events_key(server), keys.stops_key(server, name)]
        self._server = server
        self._name = name
        self._written = 0
        self._events: list[tuple[str, Event]] = []
        self._texts: dict[str, int] = {}  # request id -> index of its text in the events
        self._entries: list[str] = []  # of the queue, whose start is among the events
        self._open: set[str] = set()
        self._news = asyncio.Event()

    def begin(self, request_id: str, entry: str) -> Line:
        self._open.add(request_id)
        self._entries.append(entry)
        self.add(request_id, Started())
        return Line(self, request_id)

    def finish(self, request_id: str) -> None:
        """The request is over here; what was added is still written."""
        self._open.discard(request_id)
        self._news.set()

    def add(self, request_id: str, event: Event) -> None:
        self._events.append((request_id, event))
        self._texts.pop(request_id, None)
        self._news.set()

    def add_text(self, request_id: str, text: str) -> None:
        place = self._texts.get(request_id)
        if place is None:
            self._texts[request_id] = len(self._events)
            self._events.append((request_id, Text(text)))
        else:
            before = self._events[place][1]
            assert isinstance(before, Text)
            self._events[place] = (request_id, Text(before.text + text))
        self._news.set()

    async def run(self) -> None:
        """Write until no request is open."""
        try:
            while self._open or self._events:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._outbox.heartbeat):
                        await self._news.wait()
                self._news.clear()
                if not self._open and not self._events:
                    return
                if not await self._flush():
                    return
        finally:
            for request_id in tuple(self._open):
                self._cancel(request_id)
            self._outbox.forget(self._server, self)

    async def _flush(self) -> bool:
        """Write what is there, if only to be heard of; False: the server cannot be told."""
        events, self._events = self._events, []
        entries, self._entries = self._entries, []
        self._texts.clear()
        self._written += 1
        arguments = [KEPT_BATCHES, self._name, self._written, dump_batch(events)]
        deadline = asyncio.get_running_loop().time() + STORE_PATIENCE
        while True:
            try:
                # a second try of what was written after all is a batch of the same number
                stops = await call_store(
                    lambda: self._outbox.write(keys=self._keys, args=arguments)
                )
                await self._outbox.queue.done(entries)
                break
            except (StoreUnavailable, StorageFull) as error:
                if asyncio.get_running_loop().time() > deadline:
                    log.warning("completions.store_away", error=str(error))
                    return False
                await asyncio.sleep(STORE_RETRY)
        if stops is None:
            log.warning("completions.server_gone", server=self._server, requests=len(self._open))
            return False
        for request_id in as_text(stops):
            self._cancel(request_id)
        return True


class Outbox:
    """All channels of one worker. ``cancel`` is called with the id of a request that nobody
    waits for any more."""

    def __init__(
        self,
        redis: Redis,
        queue: JobQueue,
        worker: str,
        cancel: Callable[[str], None],
        lease_seconds: float,
    ) -> None:
        self.queue = queue
        self.heartbeat = min(HEARTBEAT, lease_seconds / 4)
        self.write = redis.register_script(_WRITE)
        self._worker = worker
        self._cancel = cancel
        self._count = 0
        self._channels: dict[str, Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def line(self, server: str, request_id: str, entry: str) -> Iterator[Line]:
        """A request's way to its server; ``entry`` leaves the queue once the server knows."""
        channel = self._channels.get(server)
        if channel is None:
            channel = self._open(server)
        try:
            yield channel.begin(request_id, entry)
        finally:
            channel.finish(request_id)

    def _open(self, server: str) -> Channel:
        self._count += 1
        name = f"{self._worker}.{self._count}"  # each counts its batches from 1
        channel = self._channels[server] = Channel(self, server, name, self._cancel)
        task = asyncio.create_task(channel.run(), name=f"channel {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return channel

    def forget(self, server: str, channel: Channel) -> None:
        if self._channels.get(server) is channel:
            del self._channels[server]

    async def close(self, seconds: float) -> None:
        """Let the channels write what they have, for ``seconds`` at most."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)
        await end_tasks(self._tasks)
