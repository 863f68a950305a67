"""A TCP proxy in front of the servers, which breaks connections on demand: cut, or deaf in one
direction while both ends still look open."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, Self

Direction = Literal["up", "down"]  # up: from the client to the server


class _Connection:
    """One client's connection and its half towards a server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.writers = (client, server)
        self.dropped: set[Direction] = set()

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Listens on a port of its own; each new connection goes to a random one of ``ports`` that
    takes it. Use as an async context manager."""

    def __init__(self, ports: Sequence[int], rng: random.Random | None = None) -> None:
        self._ports = list(ports)
        self._rng = rng or random.Random()
        self._open: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0  # taken so far

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for connection in list(self._open):
            connection.abort()

    def deafen(self, direction: Direction) -> None:
        """From now on drop, on the connections that are open now, what flows that way."""
        for connection in self._open:
            connection.dropped.add(direction)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        found = await self._connect()
        if found is None:
            writer.transport.abort()
            return
        server_reader, server_writer = found
        connection = _Connection(writer, server_writer)
        self._open.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, server_writer, connection, "up"))
                group.create_task(_pump(server_reader, writer, connection, "down"))
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio's streams would report a cancelled handler as an error
        finally:
            self._open.discard(connection)
            connection.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._rng.sample(self._ports, len(self._ports)):
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None


async def _pump(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter,
    connection: _Connection,
    direction: Direction,
) -> None:
    """Copy until one end closes; then the whole connection ends, unless it is to look open."""
    with suppress(OSError):
        while data := await source.read(65536):
            if direction in connection.dropped:
                continue
            target.write(data)
            await target.drain()
        if not connection.dropped:
            target.write_eof()
