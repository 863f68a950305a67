"""The uvicorn server that carries the app: its websocket settings, and an orderly stop."""

import asyncio
import socket as sockets
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from chatbot.server.state import Room
from chatbot.settings import Settings

PING_INTERVAL = 20.0  # seconds; a half-open socket is found within interval + timeout
PING_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0  # for sockets to say 1001
LINGER = 10.0  # for what was written last to be read


class SocketProtocol(WebSocketsSansIOProtocol):
    """A connection whose handler has ended is gone ``LINGER`` seconds later, also if its peer
    reads nothing: closing a transport alone waits for ever for the buffer to drain."""

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.loop.call_later(LINGER, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(LINGER, self.transport.abort)


class RoomServer(uvicorn.Server):
    """Stops in order: no new connections, every websocket closed with 1001 so that its client
    goes elsewhere at once, then what uvicorn does."""

    def __init__(self, config: uvicorn.Config, room: Room) -> None:
        super().__init__(config)
        self._room = room

    async def shutdown(self, sockets: list[sockets.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._room.close_sockets(STOP_TIMEOUT)
        await super().shutdown(sockets)


def make_server(app: FastAPI, settings: Settings, **overrides: Any) -> RoomServer:
    """A server for ``app``; ``overrides`` replace arguments of ``uvicorn.Config``."""
    arguments: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "ws": SocketProtocol,
        # The app itself refuses what is over max_frame_bytes. Only if it may read a frame to its
        # end does the close frame arrive: a reset would overtake it (RFC 1122 section 4.2.2.13).
        "ws_max_size": max(2 * 1024 * 1024, 4 * settings.max_frame_bytes),
        "ws_ping_interval": PING_INTERVAL,
        "ws_ping_timeout": PING_TIMEOUT,
        # small frames gain little, and a compressed frame may be a bomb
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": 10,
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }
    return RoomServer(uvicorn.Config(app, **(arguments | overrides)), app.state.room)
