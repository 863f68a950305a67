"""The client over a real server: what a network may do to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

from chatbot.client import Backoff, ChatClient
from chatbot.client_state import (
    Accepted,
    ChatState,
    Connected,
    Disconnected,
    Problem,
    ReplyEnded,
    ReplyStarted,
    ReplyText,
    Said,
    StatusChanged,
    Update,
)
from chatbot.conversation.events import ConversationId
from chatbot.errors import (
    NotAllowed,
    NotAuthenticated,
    OriginRefused,
    ProtocolViolation,
    StoreUnavailable,
)
from chatbot.record.database import Database
from chatbot.server.auth import signer_of
from tests.chatbot.server.room import (
    DEADLINE,
    ORIGIN,
    Running,
    ScriptedWorker,
    make_services,
    running,
    until,
)

FAST = Backoff(base=0.02, most=0.05)
PIECES = ["a 😀", "bé", "c ", "d", "e", " f"]
REPLY = "".join(PIECES)


@pytest.fixture
async def server(redis: Redis, database: Database, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(make_services(redis, database, tmp_path)) as started:
        yield started


async def _until(
    client: ChatClient, kind: type | tuple[type, ...], seen: list[Update] | None = None
) -> Any:
    """The next update of a kind."""
    async with asyncio.timeout(DEADLINE):
        async for update in client.updates():
            if seen is not None:
                seen.append(update)
            if isinstance(update, kind):
                return update
    raise AssertionError("updates ended")


def _client(server: Running, **options: Any) -> ChatClient:
    return ChatClient(server.url, "demo", origin=ORIGIN, backoff=FAST, **options)


async def test_a_conversation(server: Running) -> None:
    async with ScriptedWorker(server.services, PIECES).at_work(), _client(server) as client:
        message_id = await client.send("hello")
        seen: list[Update] = []
        ended = await _until(client, ReplyEnded, seen)
        assert ended.text == REPLY
        assert "".join(u.text for u in seen if isinstance(u, ReplyText)) == REPLY
        assert [u.client_message_id for u in seen if isinstance(u, Accepted)] == [message_id]
        assert [u.text for u in seen if isinstance(u, Said)] == ["hello"]
        await client.give_rating(5, "good")
        await client.request_handoff()
        assert (await _until(client, StatusChanged)).status == "waiting"


async def test_cut_at_every_piece(server: Running) -> None:
    """In each of several replies the socket is cut after another piece, and one more piece is
    written while the client is away: the text is told once, whole, in order."""
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), _client(server) as client:
        for cut in range(len(PIECES)):
            await client.send(f"question {cut}")
            await _until(client, ReplyStarted)
            gate.release()
            shown, pieces = "", 0
            while True:
                update = await _until(client, (ReplyText, ReplyEnded))
                if isinstance(update, ReplyEnded):
                    break
                shown += update.text
                assert update.so_far == shown
                if pieces == cut:
                    await client.drop_connection()
                pieces += 1
                gate.release()
            assert shown == update.text == REPLY
            assert update.finish_reason == "end"
            await until(lambda: len(worker.outcomes) == len(worker.replies))
            while not gate.locked():
                await gate.acquire()


async def test_stop(server: Running) -> None:
    gate = asyncio.Semaphore(1)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), _client(server) as client:
        assert await client.stop_reply() is False
        await client.send("hello")
        await _until(client, ReplyText)
        assert await client.stop_reply() is True
        ended = await _until(client, ReplyEnded)
        assert (ended.finish_reason, ended.text) == ("stopped", PIECES[0])


async def test_messages_are_resent_until_acknowledged(server: Running) -> None:
    """Cut after every send, before the answer can be read."""
    async with _client(server) as client:
        await _until(client, Connected)
        for number in range(5):
            await client.send(f"message {number}", f"m-{number}")
            await client.drop_connection()
        conversation_id = ConversationId(str(client.state.conversation_id))
        await until(lambda: not client.state.unacknowledged)
    events = await server.services.log.read(conversation_id)
    assert [event.data["text"] for event in events] == [f"message {n}" for n in range(5)]


async def test_what_is_written_while_the_server_restarts_arrives(
    redis: Redis, database: Database, tmp_path: Path
) -> None:
    services = make_services(redis, database, tmp_path)
    async with running(services) as first:
        client = _client(first)
        await client.__aenter__()
        await client.send("one")
        await _until(client, Accepted)
        port = int(first.url.rpartition(":")[2])
    try:
        assert (await _until(client, Disconnected)).code == 1001
        await client.send("two")
        async with running(services, port=port):
            assert (await _until(client, Connected)).recovered is True
            await _until(client, Accepted)
    finally:
        await client.__aexit__()


async def test_a_connection_that_is_gone_before_hello_is_made_again(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = 0

    @asynccontextmanager
    async def cut_once(*arguments: Any, **options: Any) -> AsyncIterator[ClientConnection]:
        nonlocal cuts
        async with connect(*arguments, **options) as socket:
            cuts += 1
            if cuts == 1:
                socket.transport.abort()
                await socket.wait_closed()
            yield socket

    monkeypatch.setattr("chatbot.client.connect", cut_once)
    async with _client(server) as client:
        assert (await _until(client, Disconnected)).code == 1006
        await _until(client, Connected)


async def test_a_later_client_continues(server: Running) -> None:
    async with _client(server) as first:
        await first.send("one")
        await _until(first, Said)
    async with _client(server, token=first.token, state=first.state) as second:
        assert (await _until(second, Connected)).recovered is True
        await second.send("two")
        assert (await _until(second, Said)).offset == 2
    async with _client(server, token=first.token) as third:
        assert (await _until(third, Connected)).recovered is False
        assert [(await _until(third, Said)).text for _ in range(2)] == ["one", "two"]


async def test_refused_texts_are_told_and_not_sent_again(server: Running) -> None:
    async with _client(server) as client:
        await client.send("   ", "m-1")
        problem = await _until(client, Problem)
        assert (problem.code, problem.client_message_id) == ("refused", "m-1")
        assert not client.state.unacknowledged


async def test_a_rate_limit_is_waited_for(redis: Redis, database: Database, tmp_path: Path) -> None:
    services = make_services(redis, database, tmp_path, messages_per_minute=30)
    async with running(services) as server, _client(server) as client:
        for number in range(31):
            await client.send(f"{number}", f"m-{number}")
        problem = await _until(client, Problem)
        assert (problem.code, problem.client_message_id) == ("rate_limited", "m-30")
        while client.state.unacknowledged:
            await _until(client, Accepted)
        conversation_id = ConversationId(str(client.state.conversation_id))
    events = await services.log.read(conversation_id)
    assert [event.data["text"] for event in events] == [str(number) for number in range(31)]


async def test_a_gap_makes_the_client_resume(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that skips a piece: the client notices and gets it by resuming."""
    from chatbot.server.follow import Follower

    advance = Follower._advance_reply
    skipped = False

    def skip_one(self: Follower, reply_id: str, version: str, text: str) -> list[Any]:
        nonlocal skipped
        frames = advance(self, reply_id, version, text)
        if not skipped and frames and frames[-1]["from_char"] > 0:
            skipped = True
            return []
        return frames

    monkeypatch.setattr(Follower, "_advance_reply", skip_one)
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), _client(server) as client:
        await client.send("hello")
        seen: list[Update] = []
        await _until(client, ReplyStarted, seen)
        gate.release()
        await _until(client, ReplyText, seen)
        for _ in PIECES[1:]:
            gate.release()
            await asyncio.sleep(0.02)  # so that pieces come one by one; not needed for the result
        ended = await _until(client, ReplyEnded, seen)
        assert "".join(u.text for u in seen if isinstance(u, ReplyText)) == ended.text == REPLY
    assert skipped
    assert any(isinstance(u, Disconnected) for u in seen)


async def test_what_ends_a_client(server: Running) -> None:
    expired, _ = signer_of(server.services).issue_visitor("demo", "v-1", -1)
    async with _client(server, token=expired) as client:
        with pytest.raises(NotAuthenticated, match="expired"):
            await _until(client, Connected)
    async with _client(server) as owner:
        await _until(owner, Connected)
        theirs = owner.state.conversation_id
    async with _client(server, conversation_id=theirs) as client:
        with pytest.raises(NotAllowed, match="not yours"):
            await _until(client, Connected)
    async with _client(server) as client:
        await _until(client, Connected)
        await client._send_now({"type": "no.such.event"})
        with pytest.raises(ProtocolViolation):
            await _until(client, Disconnected)


async def test_a_conversation_that_is_gone_is_begun_anew(server: Running) -> None:
    state = ChatState(conversation_id="c-gone", epoch="e", offset=7)
    async with _client(server, state=state) as client:
        connected = await _until(client, Connected)
        assert connected.conversation_id != "c-gone"


async def test_what_does_not_begin(server: Running) -> None:
    with pytest.raises(OriginRefused):
        async with ChatClient(server.url, "demo", origin="https://evil.example"):
            pass
    with pytest.raises(OriginRefused, match="no site"):
        async with ChatClient(server.url, "nowhere"):
            pass
    with pytest.raises(StoreUnavailable, match="no Frontdesk server answers"):
        async with ChatClient("http://127.0.0.1:1", "demo"):
            pass


def test_back_off_grows_and_is_bounded() -> None:
    backoff = Backoff(base=0.5, most=30, draw=lambda: 1.0)
    assert [backoff.pause(attempt) for attempt in range(4)] == [0.5, 1, 2, 4]
    assert backoff.pause(10_000) == 30
    assert Backoff(draw=lambda: 0.0).pause(5) == 0
