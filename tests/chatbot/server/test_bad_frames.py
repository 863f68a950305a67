"""What a socket does with bad input, with its own failures, and with a peer that does not read."""

import asyncio
import json
import socket as sockets
from typing import Any

import pytest
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

from chatbot.conversation.events import ConversationId
from chatbot.conversation.log import RedisLog
from chatbot.server.limits import SocketLimits
from tests.chatbot.server.room import (
    ORIGIN,
    Running,
    chat_tab,
    make_services,
    open_tab,
    running,
    until,
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="malformed JSON"),
        pytest.param('{"type": "no.such.event"}', id="unknown event"),
        pytest.param('{"type": "hello", "token": "t"}', id="a second hello"),
        pytest.param('{"type": "message.send", "text": "hi"}', id="a field is missing"),
        pytest.param('{"type": "typing", "more": 1}', id="a field too many"),
        pytest.param('{"type": "conversation.claim", "conversation_id": "c"}', id="a desk's frame"),
    ],
)
async def test_a_frame_that_breaks_the_protocol_ends_the_socket(server: Running, text: str) -> None:
    async with chat_tab(server) as tab:
        await tab.socket.send(text)
        assert await tab.closed() == (4400, "")
        assert tab.seen[-1]["type"] == "error"
        assert tab.seen[-1]["code"] == "protocol"


async def test_the_first_frame_is_hello(server: Running) -> None:
    async with open_tab(server) as tab:
        await tab.send("typing")
        assert await tab.closed() == (4400, "")
        assert "hello" in tab.seen[0]["message"]


async def test_binary_frames_are_refused(server: Running) -> None:
    async with chat_tab(server) as tab:
        await tab.socket.send(b'{"type": "typing"}')
        assert await tab.closed() == (4400, "")


BROKEN = WireFrame(Opcode.TEXT, b'{"type": "typing xyzzy\xff"}').serialize(mask=True)


async def test_invalid_utf_8_is_refused(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    async with chat_tab(server) as tab:
        tab.socket.transport.write(BROKEN)
        code, _ = await tab.closed()
        assert code == 1007  # RFC 6455 section 8.1: the transport's own answer
    assert "xyzzy" not in caplog.text


async def test_invalid_utf_8_and_goodbye_in_one_packet(server: Running) -> None:
    """Nothing is left to be told; nothing breaks inside either."""
    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    async with chat_tab(server) as tab:
        goodbye = WireFrame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
        tab.socket.transport.write(BROKEN + goodbye)
        await tab.closed()
        await until(lambda: server.room.sockets == 0)
    assert broken == []


async def test_hello_must_come_in_time(redis: Any, database: Any, tmp_path: Any) -> None:
    services = make_services(redis, database, tmp_path, hello_seconds=0.2)
    async with running(services) as server, open_tab(server) as tab:
        assert await tab.closed() == (4408, "")


async def test_a_long_message_is_refused_and_the_socket_stays(server: Running) -> None:
    most = server.services.settings.max_message_chars
    async with chat_tab(server) as tab:
        await tab.send("message.send", client_message_id="m-1", text="x" * (most + 1))
        error = await tab.receive_until("error")
        assert (error["code"], error["client_message_id"]) == ("too_long", "m-1")
        assert str(most) in error["message"]
        await tab.send("message.send", client_message_id="m-2", text="x" * most)
        assert (await tab.receive_until("message.accepted"))["client_message_id"] == "m-2"


@pytest.mark.parametrize("text", ["", "  \n", "a\0b"])
async def test_text_that_is_none_is_refused_and_the_socket_stays(
    server: Running, text: str
) -> None:
    async with chat_tab(server) as tab:
        await tab.send("message.send", client_message_id="m-1", text=text)
        error = await tab.receive_until("error")
        assert (error["code"], error["client_message_id"]) == ("refused", "m-1")
        assert await tab.drain() == []


@pytest.mark.parametrize("size", [70_000, 1_000_000])
async def test_a_frame_that_is_too_large_ends_the_socket(server: Running, size: int) -> None:
    async with chat_tab(server) as tab:
        await tab.send("message.send", client_message_id="m-1", text="x" * size)
        code, _ = await tab.closed()
        assert code == 1009
        conversation_id = ConversationId(tab.welcome["conversation_id"])
    assert await server.services.log.read(conversation_id) == []


async def test_messages_per_minute(redis: Any, database: Any, tmp_path: Any) -> None:
    services = make_services(redis, database, tmp_path, messages_per_minute=3)
    async with running(services) as one, running(services) as two:
        token = await one.token()
        async with chat_tab(one, token) as here, chat_tab(two, token) as there:
            for number, tab in enumerate((here, there, here)):
                await tab.send("message.send", client_message_id=f"m-{number}", text="hi")
                await tab.receive_until("message.accepted")
            await there.send("message.send", client_message_id="m-9", text="hi")
            error = await there.receive_until("error")
            assert (error["code"], error["client_message_id"]) == ("rate_limited", "m-9")
            assert 0 < error["retry_after"] <= 20
            # another visitor is not concerned, and the socket is open still
            async with chat_tab(one) as other:
                await other.send("message.send", client_message_id="m-0", text="hi")
                await other.receive_until("message.accepted")
            await there.drain()


async def test_an_unexpected_exception_reaches_nobody(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret of the inside")

    async with chat_tab(server) as tab:
        monkeypatch.setattr(RedisLog, "append_message", broken)
        await tab.send("message.send", client_message_id="m-1", text="hi")
        assert await tab.closed() == (1011, "")
        assert "secret" not in json.dumps(tab.seen)
    assert "a secret of the inside" in capsys.readouterr().out


async def test_an_unexpected_exception_of_the_writer_too(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chat_tab(server) as tab:

        async def broken(*_: Any, **__: Any) -> None:
            raise KeyError("inside")

        monkeypatch.setattr(RedisLog, "catch_up", broken)
        await tab.send("message.send", client_message_id="m-1", text="hi")
        assert await tab.closed() == (1011, "")


async def test_a_slow_reader_is_let_go(redis: Any, database: Any, tmp_path: Any) -> None:
    """It does not read; the server keeps no queue for it, and gives it up in bounded time."""
    services = make_services(redis, database, tmp_path, slow_reader_seconds=0.3)
    async with running(services, limits=SocketLimits(close_timeout=0.2)) as server:
        token = await server.token()
        async with chat_tab(server, token) as tab:
            conversation_id = ConversationId(tab.welcome["conversation_id"])
        raw = sockets.socket()
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        raw.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        writer.write(
            f"GET /v1/chat HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        hello = json.dumps({"type": "hello", "token": token}).encode()
        writer.write(WireFrame(Opcode.TEXT, hello).serialize(mask=True))
        await until(lambda: server.room._open == 1)
        await asyncio.sleep(0)  # from here on nothing is read
        for number in range(40):
            await services.log.append_message(
                conversation_id,
                role="visitor",
                text="x" * 200_000,
                client_message_id=f"big-{number}",
                author="v",
            )
        await until(lambda: server.room._open == 0)
        closed = server.room.metrics.registry.get_sample_value(
            "frontdesk_sockets_closed_total", {"kind": "chat", "code": "4413"}
        )
        assert closed == 1
        writer.close()


async def test_a_log_reset_tells_the_client_to_reload(server: Running, redis: Any) -> None:
    async with chat_tab(server) as tab:
        await redis.flushdb()
        await tab.send("message.send", client_message_id="m-1", text="hi")
        assert (await tab.closed())[0] == 4409
