"""HTTP for a load generator: one POST whose answer is read as it comes.

What measures shares the machine with what is measured, so it must cost little: a general client
spends more on each piece of a stream than a server does.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MOST_LINE = 1 << 20


@dataclass(slots=True)
class Answer:
    """Its status, and its body: pieces as they arrive."""

    status: int
    _reader: asyncio.StreamReader
    _chunked: bool

    async def pieces(self) -> AsyncIterator[bytes]:
        if not self._chunked:
            while piece := await self._reader.read(1 << 16):
                yield piece
            return
        while size := int((await self._reader.readline()).partition(b";")[0] or b"0", 16):
            yield (await self._reader.readexactly(size + 2))[:-2]

    async def whole(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])


@asynccontextmanager
async def post(url: str, key: str, body: Any) -> AsyncIterator[Answer]:
    """A connection of its own, closed at the end. Raises OSError, EOFError, ValueError: the server
    is away, broke off, or does not speak HTTP."""
    parts = urlsplit(url)
    data = json.dumps(body).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port or 80, limit=MOST_LINE
    )
    try:
        writer.write(head.encode() + data)
        status = int((await reader.readline()).split()[1])
        chunked = False
        while line := (await reader.readline()).strip().lower():
            chunked |= line.startswith(b"transfer-encoding:") and line.endswith(b"chunked")
        yield Answer(status, reader, chunked)
    finally:
        writer.close()
