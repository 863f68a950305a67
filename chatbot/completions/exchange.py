"""A server's side: asks for completions and hands each one's text to who waits for it.

One blocking read follows the server's own stream, which all workers write to, and only while
somebody waits. Whoever took a request and is silent for ``silence`` seconds is given up: the
request is asked again if no text of it was handed on, and fails otherwise. Nothing hangs, and
nothing is said twice.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisClusterException, RedisError

from chatbot.completions import keys
from chatbot.completions.queue import JobQueue, entries_of
from chatbot.completions.ticket import Ticket
from chatbot.completions.wire import (
    Ended,
    Event,
    Job,
    Released,
    Started,
    Text,
    as_error,
    load_batch,
)
from chatbot.conversation.store import as_text, call_store, map_store_error
from chatbot.crew import end_tasks
from chatbot.errors import EngineBusy, FrontdeskError, ReplyLost, StorageFull, StoreUnavailable
from chatbot.prompt import ChatMessage

log = structlog.get_logger()

PATIENCE = 60.0  # seconds that a request waits for a worker
TICK = 1.0  # seconds between looks at who is silent
READ_SECONDS = 1.0  # of one blocking read
READ_RETRY = 0.25
ANY = 1 << 30
EVENTS_LIFE = 60  # seconds that a server's stream outlives its server
STOPS_LIFE = 60

_OPEN = """
local id = ''
if redis.call('EXISTS', KEYS[1]) == 0 then
  id = redis.call('XADD', KEYS[1], '*', 'c', '', 'n', 0, 'e', '[]')
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return id
"""


@dataclass(slots=True)
class _Channel:
    """A worker's way here. ``quiet``: seconds of ticks since its last batch, which a stalled event
    loop does not count."""

    last: int = 0
    quiet: float = 0.0
    tickets: set[str] = field(default_factory=set)


class Exchange:
    """One per server process: :meth:`start`, then :meth:`ask` as often as wanted.

    Args:
        most_waiting: requests that may wait for a worker, of all servers together.
        silence: seconds after which a worker that says nothing is given up.
        attempts: workers that one request may be given to.
    """

    def __init__(self, redis: Redis, *, most_waiting: int, silence: float, attempts: int) -> None:
        self._redis = redis
        self._queue = JobQueue(redis, silence)
        self._open_stream = redis.register_script(_OPEN)
        self._most_waiting = most_waiting
        self._silence = silence
        self._attempts = attempts
        self._server = secrets.token_hex(8)
        self._stream = keys.events_key(self._server)
        self._last_id = "0-0"
        self._opened_at = float("-inf")
        self._unreadable = 0.0  # seconds of ticks that the store was away
        self._away = False
        self._tickets: dict[str, Ticket] = {}  # request id of the present attempt -> ticket
        self._channels: dict[str, _Channel] = {}
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._errands: set[asyncio.Task[None]] = set()

    # -- life

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._read(), name="exchange.read"),
            asyncio.create_task(self._watch(), name="exchange.watch"),
        ]

    async def stop(self) -> None:
        await end_tasks([*self._tasks, *self._errands])
        for ticket in list(self._tickets.values()):
            self._give_up(ticket, ReplyLost("this server is shutting down: ask again"))
        if self._last_id != "0-0":
            try:
                await call_store(lambda: self._redis.delete(self._stream))
            except (StoreUnavailable, StorageFull) as error:
                log.debug("completions.not_deleted", error=str(error))  # it expires

    @property
    def waiting(self) -> int:
        """Requests that have not ended."""
        return len(self._tickets)

    # -- asking

    async def ask(
        self, version: str, messages: list[ChatMessage], sampling: dict[str, Any], salt: str
    ) -> Ticket:
        """Put a request on the queue. Close the ticket in every case.

        Raises:
            EngineBusy: too many wait already.
            StoreUnavailable, StorageFull
        """
        if asyncio.get_running_loop().time() - self._opened_at > EVENTS_LIFE / 4:
            await self._open()
        job = Job(_request_id(), self._server, version, messages, sampling, salt)
        ticket = Ticket(job, self._abandon)
        await self._enqueue(ticket, self._most_waiting)
        return ticket

    async def _enqueue(self, ticket: Ticket, most: int) -> None:
        request_id = ticket.job.request_id
        self._tickets[request_id] = ticket  # before it is added: the answer may come at once
        self._wanted.set()
        ticket.asked_at = asyncio.get_running_loop().time()
        try:
            ticket.entry = await self._queue.add(ticket.job, most)
        except BaseException:
            self._tickets.pop(request_id, None)
            raise

    async def _open(self) -> None:
        """Have a stream that lives on. Where the store had forgotten it, so it has whatever was
        on its way."""
        made = as_text(
            await call_store(lambda: self._open_stream(keys=[self._stream], args=[EVENTS_LIFE]))
        )
        self._opened_at = asyncio.get_running_loop().time()
        if made:
            self._last_id = made
            for ticket in list(self._tickets.values()):
                self._lost(ticket, "the store lost this reply: ask again")

    # -- what comes in

    async def _read(self) -> None:
        while True:
            if not self._tickets:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                answer = await self._redis.xread(
                    {self._stream: self._last_id}, count=100, block=int(READ_SECONDS * 1000)
                )
            except (RedisError, RedisClusterException, OSError) as error:
                log.warning("completions.unreadable", error=str(map_store_error(error)))
                self._away = True
                await asyncio.sleep(READ_RETRY)
                continue
            self._away = False
            for entry_id, fields in entries_of(answer):
                self._last_id = as_text(entry_id)
                self._take_in({as_text(k): as_text(v) for k, v in fields.items()})

    def _take_in(self, fields: dict[str, str]) -> None:
        name, number = fields["c"], int(fields["n"])
        if not name:
            return  # what made the stream
        channel = self._channels.setdefault(name, _Channel(number - 1))
        if number <= channel.last:
            return  # written twice
        if number > channel.last + 1:
            log.warning("completions.gap", channel=name, after=channel.last, got=number)
            self._drop(name, "a part of this reply was lost: ask again")
            channel = self._channels.setdefault(name, _Channel())
        channel.last, channel.quiet = number, 0.0
        try:
            for request_id, event in load_batch(fields["e"]):
                self._hand_on(name, channel, request_id, event)
        except (ValueError, TypeError, KeyError) as error:
            log.error("completions.bad_batch", channel=name, error=str(error))
            self._drop(name, "the worker's words were not understood")

    def _hand_on(self, name: str, channel: _Channel, request_id: str, event: Event) -> None:
        ticket = self._tickets.get(request_id)
        if isinstance(event, Started):
            if ticket is None or ticket.channel:
                self._errand(self._stop(name, request_id))
                return
            ticket.channel = name
            channel.tickets.add(request_id)
        elif ticket is None or ticket.channel != name:
            return  # of an attempt that was given up
        elif isinstance(event, Text):
            ticket.add(event.text)
        elif isinstance(event, Released):
            self._lost(ticket, "the worker that wrote this reply stopped: ask again")
        elif isinstance(event, Ended):
            self._end(ticket, event)
        else:
            self._give_up(ticket, as_error(event))

    # -- how a request ends

    def _end(self, ticket: Ticket, end: Ended) -> None:
        self._leave(ticket)
        ticket.end(end)

    def _give_up(self, ticket: Ticket, error: FrontdeskError) -> None:
        self._leave(ticket)
        ticket.fail(error)

    def _leave(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.job.request_id, None)
        channel = self._channels.get(ticket.channel)
        if channel is not None:
            channel.tickets.discard(ticket.job.request_id)

    def _lost(self, ticket: Ticket, why: str) -> None:
        """What has it is gone: ask again, unless some of its text was handed on. If it is there
        after all, it must not go on for nobody."""
        self._leave(ticket)
        if ticket.channel:
            self._errand(self._stop(ticket.channel, ticket.job.request_id))
        ticket.attempt += 1
        if ticket.has_text or ticket.attempt > self._attempts:
            ticket.fail(ReplyLost(why))
            return
        self._errand(self._again(ticket))

    async def _again(self, ticket: Ticket) -> None:
        log.info("completions.asked_again", request=ticket.job.request_id, attempt=ticket.attempt)
        ticket.channel = ""
        ticket.job = replace(ticket.job, request_id=_request_id())
        try:
            await self._enqueue(ticket, ANY)  # it has waited already
        except FrontdeskError as error:
            ticket.fail(error)
        if ticket.closed:  # meanwhile
            self._abandon(ticket)

    def _abandon(self, ticket: Ticket) -> None:
        """Nobody waits for it any more."""
        self._leave(ticket)
        if ticket.channel:
            self._errand(self._stop(ticket.channel, ticket.job.request_id))
        elif ticket.entry:
            self._errand(self._unqueue(ticket.entry))

    async def _stop(self, channel: str, request_id: str) -> None:
        """Tell the worker; it looks with its next write."""
        key = keys.stops_key(self._server, channel)
        await call_store(lambda: self._redis.sadd(key, request_id))
        await call_store(lambda: self._redis.expire(key, STOPS_LIFE))

    async def _unqueue(self, entry: str) -> None:
        await self._queue.done([entry])

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except (StoreUnavailable, StorageFull) as error:
                log.warning("completions.not_told", error=str(error))

        task = asyncio.create_task(run())
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # -- who is silent

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if not self._tickets:
                self._channels.clear()
                continue
            try:
                await self._open()
            except (StoreUnavailable, StorageFull) as error:
                log.debug("completions.store_away", error=str(error))
            self._look()

    def _look(self) -> None:
        self._unreadable = self._unreadable + TICK if self._away else 0.0
        if self._unreadable > self._silence:
            for ticket in list(self._tickets.values()):
                self._give_up(ticket, StoreUnavailable("the store is away: try again soon"))
        for name, channel in list(self._channels.items()):
            channel.quiet += 0.0 if self._away else TICK
            if channel.quiet > self._silence:
                self._drop(name, "the worker that wrote this reply went away: ask again")
        now = asyncio.get_running_loop().time()
        for ticket in list(self._tickets.values()):
            if not ticket.channel and now - ticket.asked_at > PATIENCE:
                self._abandon(ticket)
                ticket.fail(EngineBusy("no worker was free for a minute", retry_after=10.0))

    def _drop(self, name: str, why: str) -> None:
        channel = self._channels.pop(name)
        for request_id in tuple(channel.tickets):
            ticket = self._tickets.get(request_id)
            if ticket is not None:
                self._lost(ticket, why)


def _request_id() -> str:
    return secrets.token_hex(12)
