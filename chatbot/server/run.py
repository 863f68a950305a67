"""The uvicorn server that carries the app: its websocket settings, and an orderly stop."""

import asyncio
import ipaddress
import socket as sockets
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from chatbot.errors import SettingsError
from chatbot.protocol import CloseCode
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

    def send_receive_event_to_app(self) -> None:
        """Text that is not UTF-8 closes with 1007 (RFC 6455 section 8.1). uvicorn would log what
        was sent, and fail when the peer's close frame came in the same packet."""
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.frames = []
            if self.conn.state is State.OPEN:
                self.conn.send_close(CloseCode.INVALID_TEXT)
                self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(LINGER, self.transport.abort)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def checked_proxies(text: str) -> str:
    """The setting ``trusted_proxies`` as uvicorn takes it.

    Raises:
        SettingsError: an entry is neither an address nor a network.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    for entry in entries:
        if entry == "*":
            return "*"
        try:
            ipaddress.ip_network(entry)
        except ValueError as error:
            raise SettingsError(f"FRONTDESK_TRUSTED_PROXIES: {error}") from None
    return ",".join(entries)


def make_server(app: FastAPI, settings: Settings, **overrides: Any) -> RoomServer:
    """A server for ``app``; ``overrides`` replace arguments of ``uvicorn.Config``."""
    arguments: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "ws": SocketProtocol,
        # who asks, when a proxy says so; only those named are believed
        "proxy_headers": True,
        "forwarded_allow_ips": checked_proxies(settings.trusted_proxies),
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
