"""Helpers: a real server on a loopback port, a scripted worker, and raw sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chatbot.bootstrap import artifacts_dir
from chatbot.conversation.archive import Archive
from chatbot.conversation.events import Lease, ReplyEnd
from chatbot.conversation.log import RedisLog
from chatbot.crew import end_tasks
from chatbot.record.database import Database
from chatbot.server.app import create_app
from chatbot.server.limits import SocketLimits
from chatbot.server.run import RoomServer, make_server
from chatbot.server.sites import ensure_demo_site
from chatbot.server.state import Room
from chatbot.services import Services
from chatbot.settings import Settings
from chatbot.training_runs import TrainingRuns
from chatbot.versions import Versions

SECRET = "a secret key that is long enough for HS256"
ORIGIN = "http://localhost:5000"  # a page of the demo site
DEADLINE = 15.0  # seconds that anything in these tests may take
Frame = dict[str, Any]


def make_services(redis: Redis, database: Database, folder: Path, **settings: Any) -> Services:
    """Services over real stores; the demo site exists."""
    options = Settings(**{"data_dir": folder, "lease_seconds": 1.0, **settings})
    ensure_demo_site(database)
    archive = Archive(database)
    return Services(
        settings=options,
        redis=redis,
        log=RedisLog(redis, archive, lease_seconds=options.lease_seconds, max_attempts=3),
        database=database,
        archive=archive,
        versions=Versions(database, artifacts_dir(options), options),
        runs=TrainingRuns(database, "redis://127.0.0.1:1"),
        secret_key=SECRET,
        admin_token="an-api-token",
    )


@dataclass
class Running:
    """A server that listens."""

    services: Services
    server: RoomServer
    room: Room
    url: str

    @property
    def socket_url(self) -> str:
        return "ws" + self.url.removeprefix("http")

    async def token(self, **body: Any) -> str:
        """A new visitor's token."""
        return str((await self.visitor(**body))["token"])

    async def visitor(self, *, origin: str | None = ORIGIN, **body: Any) -> Frame:
        async with httpx.AsyncClient() as http:
            answer = await http.post(
                f"{self.url}/v1/visitors",
                json={"site": "demo", **body},
                headers={"Origin": origin} if origin else {},
            )
        assert answer.status_code == 200, answer.text
        data: Frame = answer.json()
        return data


@asynccontextmanager
async def running(
    services: Services,
    *,
    limits: SocketLimits | None = None,
    demo_page: Path | None = None,
    **uvicorn: Any,
) -> AsyncIterator[Running]:
    """A real uvicorn in this event loop, on a free port."""
    app = create_app(services, demo_page=demo_page, limits=limits)
    server = make_server(app, services.settings, **({"host": "127.0.0.1", "port": 0} | uvicorn))
    task = asyncio.create_task(server._serve())  # without its signal handlers
    try:
        await until(lambda: server.started or task.done())
        if task.done():
            task.result()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(services, server, app.state.room, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        async with asyncio.timeout(DEADLINE):
            await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition with a deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - what it waits for knows no event
            await asyncio.sleep(0.005)


class Tab:
    """A raw websocket: what a page would send and receive, frame by frame."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.welcome: Frame = {}
        self.seen: list[Frame] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def receive(self) -> Frame:
        async with asyncio.timeout(DEADLINE):
            frame: Frame = json.loads(await self.socket.recv())
        self.seen.append(frame)
        return frame

    async def receive_until(self, kind: str, **fields: Any) -> Frame:
        """Frames up to the first of this type with these fields."""
        while True:
            frame = await self.receive()
            if frame["type"] == kind and fields.items() <= frame.items():
                return frame

    async def drain(self) -> list[Frame]:
        """Everything that the server sent before it answers a ping."""
        await self.send("ping")
        before = len(self.seen)
        await self.receive_until("pong")
        return self.seen[before:-1]

    async def closed(self) -> tuple[int, str]:
        """Read to the end; the close code and reason."""
        async with asyncio.timeout(DEADLINE):
            try:
                while True:
                    self.seen.append(json.loads(await self.socket.recv()))
            except ConnectionClosed:
                pass
        return self.socket.close_code or 1006, self.socket.close_reason or ""

    def text(self, reply_id: str, start: str = "") -> str:
        """A reply's text from its deltas, asserting that they are gapless."""
        text = start
        for frame in self.seen:
            if frame["type"] == "reply.delta" and frame["reply_id"] == reply_id:
                assert frame["from_char"] == len(text), (frame, text)
                text += frame["text"]
        return text


@asynccontextmanager
async def open_tab(
    server: Running, path: str = "/v1/chat", origin: str | None = ORIGIN
) -> AsyncIterator[Tab]:
    """A socket before its hello."""
    async with connect(
        server.socket_url + path,
        origin=origin,  # type: ignore[arg-type]
        compression=None,
        proxy=None,
        max_size=None,
    ) as socket:
        yield Tab(socket)


@asynccontextmanager
async def chat_tab(
    server: Running, token: str | None = None, origin: str = ORIGIN, **hello: Any
) -> AsyncIterator[Tab]:
    """A visitor's socket after its welcome."""
    async with open_tab(server, origin=origin) as tab:
        await tab.send("hello", token=token or await server.token(), **hello)
        tab.welcome = await tab.receive_until("welcome")
        yield tab


@asynccontextmanager
async def desk_tab(server: Running, token: str) -> AsyncIterator[Tab]:
    """An agent's socket after its welcome."""
    async with open_tab(server, "/v1/desk") as tab:
        await tab.send("hello", token=token)
        tab.welcome = await tab.receive_until("welcome")
        yield tab


@dataclass
class ScriptedWorker:
    """Takes real reply jobs and writes a script's pieces. ``gate``: one release lets one piece
    through; None lets all of them."""

    services: Services
    pieces: list[str]
    gate: asyncio.Semaphore | None = None
    version: str = "v-test"
    finish: ReplyEnd = "end"
    replies: list[Lease] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator["ScriptedWorker"]:
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            await end_tasks([task])
        if not task.cancelled():
            task.result()

    async def _run(self) -> None:
        log = self.services.log
        while True:
            lease = await log.take_job("scripted", 0.5)
            if lease is not None:
                self.replies.append(lease)
                self.outcomes.append(await self._reply(lease))

    async def _reply(self, lease: Lease) -> str:
        log = self.services.log
        text = lease.streamed
        if await log.start_reply(lease, self.version) == "lost":
            return "lost"
        end = 0
        for piece in self.pieces:
            end += len(piece)
            if end <= len(text):
                continue  # an earlier attempt streamed it
            if self.gate is not None and not await self._may_go_on(lease):
                return "lost"
            if await log.append_delta(lease, end - len(piece), piece) == "lost":
                return "lost"
            text += piece
        return await log.complete_reply(
            lease,
            text=text,
            finish_reason=self.finish,
            version=self.version,
            usage={"completion_tokens": len(self.pieces)},
            confidence=None,
            seconds=0.1,
        )

    async def _may_go_on(self, lease: Lease) -> bool:
        """Wait for the gate as a slow engine would: renewing the lease."""
        assert self.gate is not None
        while True:
            try:
                async with asyncio.timeout(0.1):
                    await self.gate.acquire()
                return True
            except TimeoutError:
                if await self.services.log.renew(lease) == "lost":
                    return False
