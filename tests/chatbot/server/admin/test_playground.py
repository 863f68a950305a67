"""The playground: a real stream over a real server, answered by a scripted worker."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from chatbot.conversation.events import ConversationId
from chatbot.conversation.transcript import conversation_messages
from chatbot.server.admin import playground
from chatbot.server.auth import signer_of
from chatbot.services import Services
from tests.chatbot.server.room import Running, ScriptedWorker, running, until

BASE = "base-smollm2-135m"
ASK = {"version": BASE, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def server(services: Services) -> AsyncIterator[Running]:
    async with running(services) as started:
        yield started


@asynccontextmanager
async def _http(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    token, _ = signer_of(server.services).issue_staff("reviewer", 1)
    async with httpx.AsyncClient(
        base_url=f"{server.url}/v1/admin",
        headers={"Authorization": f"Bearer {token}"},
        timeout=20,
        trust_env=False,
    ) as http:
        yield http


async def _lines(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with _http(server) as http, http.stream("POST", "/playground", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) async for line in answer.aiter_lines()]


async def _becomes(server: Running, name: ConversationId, status: str) -> None:
    async with asyncio.timeout(15):
        with server.room.hub.watch(name) as watcher:
            while (head := await server.services.log.head(name)) is None or head.status != status:
                await watcher.wait()


async def test_a_reply_streams_and_ends(server: Running) -> None:
    worker = ScriptedWorker(server.services, ["Hel", "lo ", "you"], version=BASE)
    async with worker.at_work():
        lines = await _lines(server, ASK)
    assert lines[0] == {"type": "started", "version": BASE}
    assert "".join(line["text"] for line in lines[1:-1]) == "Hello you"
    assert {line["type"] for line in lines[1:-1]} == {"delta"}
    done = lines[-1]
    assert (done["type"], done["text"], done["finish_reason"]) == ("done", "Hello you", "end")
    assert done["usage"] == {"completion_tokens": 3}
    assert done["seconds"] == 0.1


async def test_deltas_come_while_the_reply_is_written(server: Running) -> None:
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, ["one ", "two"], gate=gate, version=BASE)
    async with (
        worker.at_work(),
        _http(server) as http,
        http.stream("POST", "/playground", json=ASK) as answer,
    ):
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines))["type"] == "started"
        gate.release()
        assert json.loads(await anext(lines)) == {"type": "delta", "text": "one "}
        gate.release()
        assert json.loads(await anext(lines)) == {"type": "delta", "text": "two"}
        assert json.loads(await anext(lines))["type"] == "done"


async def test_the_worker_sees_the_history_and_the_prompt(server: Running) -> None:
    body = {
        "version": BASE,
        "system_prompt": "Talk like a pirate.",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ahoy"},
            {"role": "user", "content": "Again"},
        ],
    }
    worker = ScriptedWorker(server.services, ["Arr"], version=BASE)
    async with worker.at_work():
        assert (await _lines(server, body))[-1]["text"] == "Arr"
    (lease,) = worker.replies
    events = [
        e for e in await server.services.log.read(lease.conversation_id) if e.offset <= lease.upto
    ]
    assert conversation_messages(events, "The site's prompt.") == [
        {"role": "system", "content": "Talk like a pirate."},
        *body["messages"],
    ]
    head = await server.services.log.head(lease.conversation_id)
    assert head is not None
    assert (head.kind, head.pinned_version) == ("playground", BASE)


async def test_a_playground_is_neither_listed_nor_recorded(server: Running) -> None:
    worker = ScriptedWorker(server.services, ["Hello"], version=BASE)
    async with worker.at_work():
        await _lines(server, ASK)
    log = server.services.log
    assert await log.open_conversations() == []
    assert await log.unrecorded() == []


async def test_hanging_up_stops_the_reply(server: Running) -> None:
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, ["one ", "two ", "three"], gate=gate, version=BASE)
    async with worker.at_work():
        async with _http(server) as http, http.stream("POST", "/playground", json=ASK) as answer:
            lines = answer.aiter_lines()
            assert json.loads(await anext(lines))["type"] == "started"
            gate.release()
            assert json.loads(await anext(lines)) == {"type": "delta", "text": "one "}
        await until(lambda: bool(worker.outcomes))
    assert worker.outcomes == ["lost"]
    name = worker.replies[0].conversation_id
    head = await server.services.log.head(name)
    assert head is not None
    assert head.status == "closed"


async def test_hanging_up_before_the_reply_begins_leaves_no_job(server: Running) -> None:
    log = server.services.log
    seen: list[ConversationId] = []
    async with _http(server) as http:
        request = asyncio.create_task(http.post("/playground", json=ASK))

        async def begun() -> None:
            async for name in log.changes():
                if name is not None and name.startswith("play-"):
                    seen.append(name)
                    return

        watching = asyncio.create_task(begun())
        async with asyncio.timeout(15):
            await watching
        await _becomes(server, seen[0], "bot")
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await _becomes(server, seen[0], "closed")
    assert await log.take_job("w", 0.2) is None


async def test_a_failed_reply_is_an_error_line(server: Running) -> None:
    log = server.services.log

    async def fail() -> None:
        while (lease := await log.take_job("w", 1)) is None:
            pass
        await log.start_reply(lease, BASE)
        await log.fail_reply(lease, version=BASE, reason="the engine is out of memory")

    failing = asyncio.create_task(fail())
    lines = await _lines(server, ASK)
    await failing
    assert lines[-1]["type"] == "error"
    assert "out of memory" in lines[-1]["message"]


async def test_no_worker_is_told(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(playground, "LOOK_SECONDS", 0.1)
    lines = await _lines(server, ASK)
    assert [(line["type"], line["code"]) for line in lines] == [("error", "busy")]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"version": "v-none"}, 404),
        ({"messages": []}, 422),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 422),
        ({"messages": [{"role": "system", "content": "Hi"}]}, 422),
        ({"messages": [{"role": "user", "content": ""}]}, 422),
        ({"temperature": 1}, 422),
    ],
)
async def test_a_bad_question_is_refused(
    reviewer: httpx.AsyncClient, changes: dict[str, Any], status: int
) -> None:
    answer = await reviewer.post("/playground", json={**ASK, **changes})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
