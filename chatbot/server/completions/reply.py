"""One completion on its way to the one who asked. The work for it ends when he leaves."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import structlog
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from chatbot.completions.ticket import Piece, Ticket, TicketClosed
from chatbot.completions.wire import Ended
from chatbot.crew import end_tasks
from chatbot.errors import FrontdeskError
from chatbot.server.completions.answers import FINISH, Answer, error_event
from chatbot.server.completions.errors import CLOSED, error_body, internal_body
from chatbot.server.metrics import CompletionMetrics

log = structlog.get_logger()
SEND_SECONDS = 30.0  # a client that takes nothing for so long is given up


class Reply:
    """Made when the request is read: times count from there. Entered once by :meth:`counted`."""

    def __init__(self, metrics: CompletionMetrics, answer: Answer) -> None:
        self._metrics = metrics
        self._answer = answer
        self._began = time.perf_counter()
        self._spoke = False
        self._settled = False
        metrics.open.inc()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """An error in here is how the request ended."""
        try:
            yield
        except BaseException:
            self.settle("failed")
            raise

    def settle(self, outcome: str) -> None:
        """Count how it ended, once."""
        if not self._settled:
            self._settled = True
            self._metrics.open.dec()
            self._metrics.ended(outcome)

    async def read(self, ticket: Ticket) -> Piece:
        """The next piece that says something. Raises as Ticket.read."""
        piece = await ticket.read()
        while not piece.text and piece.end is None:
            piece = await ticket.read()
        if not self._spoke:
            self._spoke = True
            self._metrics.first_text.observe(time.perf_counter() - self._began)
        if piece.end is not None:
            self._note(piece.end)
        return piece

    def _note(self, end: Ended) -> None:
        self._metrics.used(
            end.prompt_tokens - end.cached_tokens, end.cached_tokens, end.completion_tokens
        )
        self.settle(FINISH[end.finish])

    async def whole(self, ticket: Ticket, request: Request) -> Response:
        """The reply as one JSON object."""
        text = ""
        async with closing(ticket, request.receive):
            try:
                while True:
                    piece = await self.read(ticket)
                    text += piece.text
                    if piece.end is not None:
                        return JSONResponse(self._answer.whole(text, piece.end))
            except TicketClosed:
                self.settle("cancelled")
                return Response(status_code=CLOSED)

    async def streamed(self, ticket: Ticket, request: Request) -> Response:
        """Server-sent events. What goes wrong before the first text is still an error of HTTP."""
        try:
            async with watching(ticket, request.receive):
                first = await self.read(ticket)
        except TicketClosed:
            self.settle("cancelled")
            return Response(status_code=CLOSED)
        except BaseException:
            ticket.close()
            raise
        return _EventStream(self, ticket, first)

    async def events(self, ticket: Ticket, piece: Piece) -> AsyncIterator[tuple[bytes, bool]]:
        """(events, whether they are the last)."""
        made = self._answer.first(piece.text)
        while piece.end is None:
            yield made, False
            piece = await self.read(ticket)
            made = self._answer.text(piece.text) if piece.text else b""
        yield made + self._answer.last(piece.end), True

    def problem(self, error: Exception) -> bytes:
        """The event that tells of an error in the middle of a stream, which ends it."""
        self.settle("failed")
        if isinstance(error, FrontdeskError):
            log.warning("completions.broken_off", code=error.code, error=str(error))
            return error_event(error_body(error))
        log.error("completions.failed", exc_info=error)
        return error_event(internal_body())


class _EventStream(Response):
    """Plain ASGI: one message for each piece, and nothing between. Starlette's own stream would
    cost a task group and a generator for each."""

    media_type = "text/event-stream"

    def __init__(self, reply: Reply, ticket: Ticket, first: Piece) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._reply = reply
        self._ticket = ticket
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with closing(self._ticket, receive):
            try:
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                await self._send_all(send)
            except (TicketClosed, TimeoutError, OSError):
                pass
            finally:
                self._reply.settle("cancelled")  # unless it came to an end

    async def _send_all(self, send: Send) -> None:
        try:
            async for events, last in self._reply.events(self._ticket, self._first):
                await _send(send, events, more=not last)
        except (TicketClosed, TimeoutError, OSError):
            raise
        except Exception as error:
            await _send(send, self._reply.problem(error), more=False)


async def _send(send: Send, body: bytes, more: bool) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": more})


@contextlib.asynccontextmanager
async def watching(ticket: Ticket, receive: Receive) -> AsyncIterator[None]:
    """Close the ticket when its client goes."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ticket.close()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        await end_tasks([task])


@contextlib.asynccontextmanager
async def closing(ticket: Ticket, receive: Receive) -> AsyncIterator[None]:
    """The same, and close it at the end in any case."""
    try:
        async with watching(ticket, receive):
            yield
    finally:
        ticket.close()
