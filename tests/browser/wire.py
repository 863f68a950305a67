"""A TCP proxy in front of the server: a network that tests can cut, refuse, or make one-way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Network:
    """``refusing``: new connections are closed at once. ``hold()`` keeps back what the server
    says (it is delivered by ``flow()``); connections made while held are held too."""

    port: int = 0
    refusing: bool = False
    connections: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _deaf: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection, as a router that reboots does."""
        for writer in list(self._open):
            writer.transport.abort()

    def hold(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def deafen(self) -> None:
        """From now on nothing of the server reaches today's connections, which look open."""
        self._deaf |= self._open

    async def serve(
        self, target: int, reader: asyncio.StreamReader, out: asyncio.StreamWriter
    ) -> None:
        if self.refusing:
            out.transport.abort()
            return
        self.connections += 1
        far_reader, far_out = await asyncio.open_connection("127.0.0.1", target)
        self._open |= {out, far_out}
        pumps = [
            asyncio.create_task(self._pump(reader, far_out, down=False)),
            asyncio.create_task(self._pump(far_reader, out, down=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in (out, far_out):
                self._open.discard(writer)
                writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, out: asyncio.StreamWriter, *, down: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if down:
                    await self._flowing.wait()
                if down and out in self._deaf:
                    continue
                out.write(data)
                await out.drain()


@asynccontextmanager
async def network(target: int) -> AsyncIterator[Network]:
    """A proxy to ``target`` on a free port."""
    net = Network()
    net.flow()

    async def serve(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await net.serve(target, reader, out)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    net.port = server.sockets[0].getsockname()[1]
    try:
        yield net
    finally:
        server.close()
        net.flow()
        net.cut()
        await server.wait_closed()
