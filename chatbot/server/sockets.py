"""What every websocket of the server does the same way: bounded sends, a deadline for hello,
the mapping of exceptions to close codes, and a clean end when the server stops.

Text of an unexpected exception never reaches the peer: it is logged, and the socket closes with
1011 and an empty reason (RFC 6455 section 7.4.1).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import structlog
from fastapi import WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketDisconnected

from chatbot import protocol
from chatbot.crew import run_together
from chatbot.errors import (
    AccessError,
    Erased,
    FrontdeskError,
    NotAuthenticated,
    NotFound,
    Overloaded,
    ProtocolViolation,
    StorageFull,
    StoreUnavailable,
)
from chatbot.protocol import CloseCode
from chatbot.server.follow import LogReset
from chatbot.server.limits import (
    MINUTE,
    FrameBudget,
    FrameLease,
    SocketLimits,
    counted_address,
    limit_of,
)
from chatbot.server.state import Room

log = structlog.get_logger()
Read = TypeVar("Read")

_CLOSE_CODES: tuple[tuple[type[FrontdeskError], CloseCode], ...] = (
    (ProtocolViolation, CloseCode.PROTOCOL),
    (NotAuthenticated, CloseCode.NOT_AUTHENTICATED),
    (AccessError, CloseCode.NOT_ALLOWED),
    (Erased, CloseCode.ERASED),
    (NotFound, CloseCode.LOG_RESET),  # reconnect without the conversation's id
    (LogReset, CloseCode.LOG_RESET),
    (Overloaded, CloseCode.RATE_LIMITED),
    (StoreUnavailable, CloseCode.TRY_AGAIN_LATER),
    (StorageFull, CloseCode.TRY_AGAIN_LATER),
)


class Gone(Exception):
    """The peer closed the socket, or the connection broke."""


class MustClose(Exception):
    """Our side ends the socket with ``code``; there is nothing more to say. ``limit``: the setting
    whose limit was reached."""

    def __init__(self, code: CloseCode, limit: str | None = None) -> None:
        super().__init__(code.name)
        self.code = code
        self.limit = limit


class Peer:
    """One accepted socket. ``send`` may be called by several tasks at once."""

    def __init__(self, websocket: WebSocket, room: Room, kind: str) -> None:
        self.room = room
        self.origin: str | None = websocket.headers.get("origin")
        self.host: str = websocket.headers.get("host", "")
        self.address = counted_address(websocket.client.host if websocket.client else "")
        self.expires_at: float | None = None  # Unix seconds; when the token of hello ends
        self.lease: FrameLease | None = None  # once it is known who sends
        self.about: dict[str, str] = {}  # what its log lines name
        self._websocket = websocket
        self._kind = kind
        per_minute = room.services.settings.frames_per_minute
        self._budget = FrameBudget(per_minute / MINUTE, per_minute / 12)

    def name(self, **ids: str) -> None:
        """Have the log lines of this socket name ``ids``, also those about its end."""
        self.about.update(ids)
        structlog.contextvars.bind_contextvars(**ids)

    async def receive(self) -> str:
        """The next frame's text.

        Raises:
            Gone
            MustClose: the frame is too large, or there are too many.
            RateLimited: the visitor or the address has sent too many on all its sockets.
            ProtocolViolation: a binary frame.
            NotAuthenticated: the token has expired since hello.
        """
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise Gone
        if not self._budget.take():
            raise MustClose(CloseCode.RATE_LIMITED, "frames_per_minute")
        if self.lease is not None:
            await self.lease.take()
        text, data = message.get("text"), message.get("bytes")
        size = len(data or b"") if text is None else len(text.encode())
        if size > self.room.services.settings.max_frame_bytes:
            raise MustClose(CloseCode.TOO_BIG, "max_frame_bytes")
        if text is None:
            raise ProtocolViolation("binary frames are not part of this protocol: send text")
        if self.expires_at is not None and time.time() >= self.expires_at:
            raise NotAuthenticated("the token has expired: get a new one and reconnect")
        return cast(str, text)

    async def hello(self) -> str:
        """The first frame's text.

        Raises:
            MustClose: it did not come in time. Else as :meth:`receive`.
        """
        try:
            async with asyncio.timeout(self.room.services.settings.hello_seconds):
                return await self.receive()
        except TimeoutError:
            raise MustClose(CloseCode.HELLO_TIMEOUT, "hello_seconds") from None

    async def send(self, frame: dict[str, Any]) -> None:
        """Send one frame. The server keeps no queue: when the peer does not read, the socket's
        buffer fills and this waits.

        Raises:
            Gone
            MustClose: the peer did not read for ``slow_reader_seconds``.
        """
        try:
            async with asyncio.timeout(self.room.services.settings.slow_reader_seconds):
                await self._websocket.send_text(protocol.encode(frame))
        except TimeoutError:
            raise MustClose(CloseCode.SLOW_READER, "slow_reader_seconds") from None
        except (WebSocketDisconnect, WebSocketDisconnected) as error:
            raise Gone from error
        self.room.metrics.frame_sent(self._kind, frame)

    async def close(self, code: CloseCode) -> None:
        """Close with an empty reason; a peer that does not read is not waited for."""
        self.room.metrics.socket_closed(self._kind, code)
        try:
            async with asyncio.timeout(self.room.limits.close_timeout):
                await self._websocket.close(code)
        except (TimeoutError, WebSocketDisconnect, WebSocketDisconnected):
            log.debug("socket.close_not_sent", code=int(code))


async def read_log(limits: SocketLimits, read: Callable[[], Awaitable[Read]]) -> Read:
    """Read, and wait for a store that is away for a moment.

    Raises:
        StoreUnavailable: it stayed away. Whatever else ``read`` raises.
    """
    for pause in limits.store_retries:
        try:
            return await read()
        except StoreUnavailable:
            await asyncio.sleep(pause)
    return await read()


def close_code(problem: FrontdeskError) -> CloseCode:
    """The code that a socket closes with when it cannot go on because of ``problem``."""
    for kind, code in _CLOSE_CODES:
        if isinstance(problem, kind):
            return code
    return CloseCode.INTERNAL


async def run_socket(
    websocket: WebSocket, kind: str, session: Callable[[Peer], Awaitable[None]]
) -> None:
    """Accept the socket, run ``session`` and close with the code that its end calls for."""
    room: Room = websocket.app.state.room
    await websocket.accept()
    peer = Peer(websocket, room, kind)

    async def converse() -> None:
        settings = room.services.settings
        if room.sockets > settings.sockets_per_server:
            raise MustClose(CloseCode.TRY_AGAIN_LATER, "sockets_per_server")
        at_address = room.open_sockets.hold(
            "sockets_per_address", peer.address, settings.sockets_per_address
        )
        async with at_address:
            await session(peer)

    with room.metrics.open_socket(kind), room.open_socket():
        try:
            await run_together(converse(), _until_stopping(room))
        except Gone:
            return
        except MustClose as end:
            room.metrics.limited(end.limit)
            await peer.close(end.code)
        except FrontdeskError as problem:
            await _end_with(peer, problem)
        except Exception:
            log.exception("socket.failed", kind=kind, **peer.about)
            room.metrics.error("internal")
            await peer.close(CloseCode.INTERNAL)


async def _until_stopping(room: Room) -> None:
    await room.stopping.wait()
    await asyncio.sleep(random.random() * room.goodbye_seconds)
    raise MustClose(CloseCode.GOING_AWAY)


async def _end_with(peer: Peer, problem: FrontdeskError) -> None:
    code = close_code(problem)
    peer.room.metrics.limited(limit_of(problem))
    if code is CloseCode.INTERNAL:
        log.error("socket.failed", code=problem.code, error=str(problem), **peer.about)
    else:
        log.info("socket.refused", code=problem.code, error=str(problem), **peer.about)
        try:
            await peer.send(protocol.error_of(problem))
        except (Gone, MustClose):
            return
    await peer.close(code)
