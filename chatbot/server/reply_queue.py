"""How long the queue of replies is, and what visitors are told when it is too long.

The length is that of all lanes' job streams; the speed is what the workers say of themselves. By
Little's law ``L = lambda * W`` a full house of ``slots`` workers' places, each taken for
``seconds_per_reply``, ends ``lambda = slots / seconds_per_reply`` replies a second; ``L`` waiting
replies wait ``L / lambda`` seconds. Too many is more than ``queue_length``, or more than can begin
within ``queue_seconds``; ``retry_after`` is the time until that many have begun.

Each server looks at most once a second, and counts what it lets in between; so several servers
together may go over the limit by what they take in a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from chatbot.errors import Overloaded, StoreUnavailable
from chatbot.presence import WorkerState
from chatbot.settings import Settings

log = structlog.get_logger()
LOOK_SECONDS = 1.0
UNKNOWN_RETRY = 10.0  # seconds: no worker is there, or none has ended a reply yet
LONGEST_RETRY = 600.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """``jobs``: replies that wait or are being written."""

    jobs: int
    workers: tuple[WorkerState, ...]

    @property
    def waiting(self) -> int:
        return max(0, self.jobs - sum(worker.running for worker in self.workers))

    @property
    def replies_per_second(self) -> float | None:
        """What the workers can end, busy as they are; None when none has said."""
        speeds = [w.slots / w.seconds_per_reply for w in self.workers if w.seconds_per_reply]
        return sum(speeds) or None


def check_queue(state: QueueState, let_in: int, settings: Settings) -> None:
    """Raises Overloaded when one more reply would wait too long. ``let_in``: messages accepted
    since ``state`` was looked at."""
    waiting = state.waiting + let_in
    speed = state.replies_per_second
    free = sum(worker.slots - worker.running for worker in state.workers)
    if waiting < free:
        return
    allowed = float(settings.queue_length)
    limit = "queue_length"
    if speed is not None and settings.queue_seconds * speed < allowed:
        allowed, limit = settings.queue_seconds * speed, "queue_seconds"
    if waiting < allowed:
        return
    wait = UNKNOWN_RETRY if speed is None else (waiting + 1 - allowed) / speed
    raise Overloaded(
        "everybody is busy at the moment: please send your message again a little later",
        retry_after=min(LONGEST_RETRY, max(1.0, wait)),
        limit=limit,
    )


class ReplyQueue:
    """The queue as one server sees it."""

    def __init__(self, look: Callable[[], Awaitable[QueueState]], settings: Settings) -> None:
        self._look = look
        self._settings = settings
        self._state = QueueState(0, ())
        self._looked = float("-inf")
        self._let_in = 0
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """Raises Overloaded when a new reply would wait too long. While the store is away it
        raises nothing: then the message itself cannot be kept."""
        await self._refresh()
        check_queue(self._state, self._let_in, self._settings)

    def note_message(self) -> None:
        """A message was accepted that may wait for a reply."""
        self._let_in += 1

    async def _refresh(self) -> None:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now - self._looked < LOOK_SECONDS:
                return
            try:
                self._state = await self._look()
            except StoreUnavailable as error:
                log.debug("limits.queue_not_seen", error=str(error))
                self._state = QueueState(0, ())
            self._let_in = 0
            self._looked = now
