"""One completion that somebody waits for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from chatbot.completions.wire import Ended, Job
from chatbot.errors import FrontdeskError


@dataclass(frozen=True, slots=True)
class Piece:
    """All text since the last look, and the end if it is there."""

    text: str
    end: Ended | None = None


class TicketClosed(Exception):
    """Nobody waits for it any more."""


class Ticket:
    """Read with :meth:`read` until a piece has an end, and :meth:`close` in every case. Holds at
    most the text of one reply."""

    def __init__(self, job: Job, abandon: Callable[["Ticket"], None]) -> None:
        self.job = job
        self.attempt = 1
        self.channel = ""  # of the worker that has it
        self.entry = ""  # in the queue
        self.asked_at = 0.0
        self.has_text = False
        self.closed = False
        self._abandon = abandon
        self._texts: list[str] = []
        self._end: Ended | None = None
        self._error: FrontdeskError | None = None
        self._news = asyncio.Event()

    async def read(self) -> Piece:
        """Wait for more.

        Raises:
            TicketClosed
            FrontdeskError: what the worker met, after all text was read.
        """
        await self._news.wait()
        if self.closed:
            raise TicketClosed
        text = "".join(self._texts)
        self._texts.clear()
        if self._end is None and self._error is None:
            self._news.clear()
        elif self._error is not None and not text:
            raise self._error
        return Piece(text, self._end)

    def close(self) -> None:
        """Nobody waits any more: the work for it ends, unless it has ended."""
        if not self.closed:
            self.closed = True
            self._news.set()
            if self._end is None and self._error is None:
                self._abandon(self)

    # -- the exchange's side

    def add(self, text: str) -> None:
        self.has_text = True
        self._texts.append(text)
        self._news.set()

    def end(self, end: Ended) -> None:
        self._end = end
        self._news.set()

    def fail(self, error: FrontdeskError) -> None:
        self._error = error
        self._news.set()
