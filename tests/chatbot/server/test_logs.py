"""Logs tell what happened and to which conversation, never what anybody said."""

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog

from chatbot.conversation.log import RedisLog
from chatbot.logs import configure_logs
from chatbot.services import Services
from chatbot.settings import Settings
from chatbot.tracing import trace_id_of
from chatbot.worker.worker import Worker
from tests.chatbot.server.room import chat_tab, desk_tab, open_tab, running, until
from tests.chatbot.worker.scripted_engine import ScriptedEngine

PRIVATE = "xyzzy"  # in everything that a person or the bot says here
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def lines(_plain_logs: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a process writes to its log, at the lowest level."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logs(Settings(log_level="debug", log_json=True), "server")
    yield written
    structlog.contextvars.clear_contextvars()


def _say(name: str, text: str) -> dict[str, str]:
    return {"type": "message.send", "client_message_id": name, "text": text}


async def test_no_words_of_people_in_the_logs(
    services: Services, anna: str, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole chat, with everything that can go wrong on the way."""
    services.versions.ensure_base("smollm2-135m")
    engine = ScriptedEngine(lambda _: f"The {PRIVATE} is on its way.")
    stop = asyncio.Event()
    work = asyncio.create_task(Worker(services, engine, "w").run(stop))
    async with running(services) as server, chat_tab(server) as tab:
        conversation_id = tab.welcome["conversation_id"]
        await tab.socket.send(json.dumps(_say("m-1", f"I am Bob {PRIVATE}, bob@{PRIVATE}.example")))
        await tab.receive_until("reply.completed")
        await tab.socket.send(json.dumps(_say("m-2", PRIVATE * 3000)))  # too long
        await tab.receive_until("error")
        await tab.send("rating.give", score=2, comment=f"too {PRIVATE}")
        await tab.receive_until("rating.given")
        engine.refuse = [ZeroDivisionError("a bug")]
        await tab.socket.send(json.dumps(_say("m-3", f"more {PRIVATE}")))
        await tab.receive_until("status.changed", status="waiting")
        async with desk_tab(server, anna) as desk:
            await desk.send("conversation.claim", conversation_id=conversation_id)
            await tab.receive_until("status.changed", status="human")
            for kind, name in (("message.send", "a-1"), ("note.add", "a-2")):
                about = {"conversation_id": conversation_id, "client_message_id": name}
                await desk.send(kind, text=f"dear {PRIVATE}", **about)
            await tab.receive_until("message.created", role="agent")
        for frame in (
            {"type": PRIVATE},
            {"type": "typing", PRIVATE: 1},
            {"type": "message.send", "client_message_id": PRIVATE * 20, "text": PRIVATE},
            PRIVATE,
        ):
            async with open_tab(server) as other:
                await other.send("hello", token=await server.token())
                await other.receive_until("welcome")
                raw = frame if isinstance(frame, str) else json.dumps(frame)
                await other.socket.send(raw)
                assert (await other.closed())[0] == 4400
                assert PRIVATE not in str(other.seen[-1])
        async with httpx.AsyncClient(base_url=server.url) as http:
            await http.post(f"/v1/visitors?{PRIVATE}", json={"site": "demo", PRIVATE: PRIVATE})
            await http.get(f"/{PRIVATE}")

        async def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(RedisLog, "append_message", broken)
        await tab.socket.send(json.dumps(_say("m-4", f"last {PRIVATE}")))
        assert (await tab.closed())[0] == 1011
        stop.set()
        await work
    text = lines.getvalue()
    assert "a bug of ours" in text  # what went wrong is there
    assert "socket.failed" in text
    assert PRIVATE not in text


async def test_lines_of_server_and_worker_name_conversation_and_trace(
    services: Services, lines: io.StringIO
) -> None:
    services.versions.ensure_base("smollm2-135m")
    engine = ScriptedEngine(lambda _: "Hi.")
    engine.refuse = [ZeroDivisionError("a bug")]
    stop = asyncio.Event()
    work = asyncio.create_task(Worker(services, engine, "w").run(stop))
    async with running(services) as server:
        async with open_tab(server) as tab:
            await tab.send("hello", token=await server.token())
            conversation_id = (await tab.receive_until("welcome"))["conversation_id"]
            await tab.socket.send(json.dumps(_say("m-1", "hello")))
            await tab.receive_until("reply.failed")
            await tab.send("typing", more=1)
            await tab.closed()
        stop.set()
        await work
        await until(lambda: not server.room.sockets)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    of_worker = next(line for line in told if line["event"] == "worker.reply_failed")
    of_server = next(line for line in told if line["event"] == "socket.refused")
    assert of_worker["conversation_id"] == of_server["conversation_id"] == conversation_id
    assert of_worker["trace_id"] == of_server["trace_id"]
    assert len(of_worker["trace_id"]) == 32


async def test_the_callers_trace_is_kept(services: Services, lines: io.StringIO) -> None:
    async with running(services) as server, httpx.AsyncClient(base_url=server.url) as http:
        await http.post("/v1/visitors", json={}, headers={"traceparent": TRACE})
        answer = await http.post("/v1/visitors", json={}, headers={"X-Request-Id": "req-7"})
    assert answer.headers["X-Request-Id"] == "req-7"
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    answered = [line for line in told if line["event"] == "http.answered"]
    assert answered[0]["trace_id"] == trace_id_of(TRACE)
    assert answered[1]["request_id"] == "req-7"
