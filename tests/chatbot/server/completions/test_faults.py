"""Workers that stop or die, a store that forgets: nothing hangs, nothing is said twice."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import structlog
from redis.asyncio import Redis

from chatbot.completions import keys
from chatbot.completions.queue import JobQueue
from chatbot.completions.wire import Event, Started, Text, dump_batch
from chatbot.record.database import Database
from chatbot.redis_client import open_redis
from chatbot.worker.worker import Worker
from tests.chatbot.server.completions.conftest import TEXT, Desk, serving
from tests.chatbot.server.room import until
from tests.chatbot.worker.conftest import Place, make_services
from tests.chatbot.worker.scripted_engine import ScriptedEngine


async def _text_so_far(stream: Any, length: int) -> str:
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if len(text) >= length:
            break
    return text


class Hand:
    """A worker's side by hand: takes a job and says what a test wants."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue = JobQueue(redis, 1.0)
        self._number = 0
        self.server = ""
        self.request_id = ""

    async def take(self) -> None:
        delivery = None
        async with asyncio.timeout(30):
            while delivery is None:
                delivery = await self._queue.take(0.2)
        await self._queue.done([delivery.entry])
        self.server, self.request_id = delivery.job.server, delivery.job.request_id
        await self.say(Started())

    async def say(self, *events: Event, number: int | None = None) -> None:
        self._number = self._number + 1 if number is None else number
        batch = dump_batch([(self.request_id, event) for event in events])
        fields: dict[Any, Any] = {"c": "hand", "n": self._number, "e": batch}
        await self._redis.xadd(keys.events_key(self.server), fields)


async def test_a_silent_worker_is_replaced_before_its_first_word(place: Place) -> None:
    async with serving(place.with_settings(lease_seconds=1.0)) as desk:
        asked = asyncio.create_task(desk.ask())
        hand = Hand(place.services.redis)
        await hand.take()
        async with place.worker():
            assert (await asked).choices[0].message.content == TEXT
        # what the first one says now is of an attempt that was given up
        await hand.say(Text("too late"))
        assert desk.server.room.exchange.waiting == 0


async def test_a_silent_worker_ends_its_stream(place: Place) -> None:
    async with serving(place.with_settings(lease_seconds=1.0)) as desk:
        asked = asyncio.create_task(desk.ask(stream=True))
        hand = Hand(place.services.redis)
        await hand.take()
        await hand.say(Text("Your "))
        stream = await asked
        with pytest.raises(openai.APIError, match="went away"):
            await _text_so_far(stream, 100)


async def test_a_lost_part_ends_its_stream_and_a_doubled_one_does_not(place: Place) -> None:
    async with serving(place) as desk:
        asked = asyncio.create_task(desk.ask(stream=True))
        hand = Hand(place.services.redis)
        await hand.take()
        await hand.say(Text("Your "))
        await hand.say(Text("Your "), number=2)
        await hand.say(Text("parcel"), number=3)
        stream = await asked
        assert await _text_so_far(stream, len("Your parcel")) == "Your parcel"
        await hand.say(Text("!"), number=5)
        with pytest.raises(openai.APIError, match="lost"):
            await _text_so_far(stream, 100)


async def test_a_worker_that_stops_gives_back_what_has_no_text(place: Place) -> None:
    async with serving(place) as desk:
        place.engine.hold_at = 0
        async with place.worker(drain_seconds=0.1):
            asked = asyncio.create_task(desk.ask())
            await until(lambda: place.engine.running == 1)
        place.engine.hold_at = None
        async with place.worker():
            assert (await asked).choices[0].message.content == TEXT


async def test_a_worker_that_stops_says_so_in_a_stream(place: Place) -> None:
    async with serving(place) as desk:
        place.engine.hold_at = 6
        async with place.worker(drain_seconds=0.1):
            stream = await desk.ask(stream=True)
            assert await _text_so_far(stream, 6) == TEXT[:6]
        with pytest.raises(openai.APIError, match="stopped"):
            await _text_so_far(stream, 100)


async def test_a_job_whose_taker_died_is_taken_by_another(place: Place) -> None:
    async with serving(place) as desk:
        asked = asyncio.create_task(desk.ask())
        dead = JobQueue(place.services.redis, 1.0)
        async with asyncio.timeout(30):
            while await dead.take(0.2) is None:
                pass
        async with place.with_settings(lease_seconds=0.5).worker():
            assert (await asked).choices[0].message.content == TEXT


async def test_the_work_of_a_server_that_is_gone_ends(place: Place) -> None:
    place.engine.hold_at = 6
    async with place.worker(), serving(place) as desk:
        stream = await desk.ask(stream=True)
        await _text_so_far(stream, 6)
        await place.services.redis.delete(*await place.services.redis.keys("fd:api:*"))
        with pytest.raises(openai.APIError, match="lost"):
            await _text_so_far(stream, 100)
        await until(lambda: place.engine.running == 0)
        place.engine.hold_at = None  # and the next request is a request as any
        assert (await desk.ask()).choices[0].message.content == TEXT


async def test_many_at_once_share_their_writes(desk: Desk) -> None:
    """Thirty requests: each gets its own words, and they cross the store together."""
    desk.engine.script = lambda prompt: f"about {prompt.partition('User:')[2][:12]!r}: " + TEXT
    asked = [desk.ask(messages=[{"role": "user", "content": f"number {n:03}"}]) for n in range(30)]
    answers = await asyncio.gather(*asked)
    for n, answer in enumerate(answers):
        assert f"number {n:03}" in answer.choices[0].message.content
    (stream,) = await desk.place.services.redis.keys("fd:api:*:events")
    pieces = sum(len(answer.choices[0].message.content) for answer in answers) / desk.engine.piece
    assert await desk.place.services.redis.xlen(stream) < pieces / 3


async def test_a_worker_holds_few_requests(place: Place) -> None:
    small = place.with_settings(max_running=2, max_waiting=3)
    small.engine.hold_at = 0
    async with serving(small) as desk, small.worker() as worker:
        assert isinstance(worker, Worker)
        asked = [asyncio.create_task(desk.ask()) for _ in range(6)]
        await until(lambda: small.engine.running == 3)
        small.engine.go.set()
        await asyncio.gather(*asked)
        assert small.engine.most_running == 3


async def test_the_same_on_a_cluster(cluster_url: str, database: Database, tmp_path: Path) -> None:
    client = open_redis(cluster_url)
    services = make_services(client, database, tmp_path, lease_seconds=20.0)
    place = Place(services, ScriptedEngine(lambda prompt: TEXT), tmp_path / "artifacts")
    try:
        async with serving(place) as desk, place.worker(drain_seconds=0.2):
            assert (await desk.ask()).choices[0].message.content == TEXT
            place.engine.hold_at = 6
            stream = await desk.ask(stream=True)
            assert await _text_so_far(stream, 6) == TEXT[:6]
            await stream.close()
            await until(lambda: len(place.engine.ended) == 2)
            place.engine.hold_at = None
            answers = await asyncio.gather(*(desk.ask() for _ in range(5)))
            assert {answer.choices[0].message.content for answer in answers} == {TEXT}
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (rb'{"model":"live","messages":[{"role":"user","content":"a\ud800b"}]}', "surrogate"),
        (rb'{"model":"live","messages":[{"role":"user","content":"a"}],"\udc00":1}', "surrogate"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"{", "not JSON"),
        (b'"\xff"', "not JSON"),
    ],
    ids=["half a character", "in a name", "deep lists", "deep objects", "cut off", "no UTF-8"],
)
async def test_a_body_that_cannot_be_read_is_refused_in_openais_form(
    desk: Desk, body: bytes, word: str
) -> None:
    headers = {"Authorization": f"Bearer {desk.key}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=desk.server.url, headers=headers) as http:
        answer = await http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert word in error["message"]


async def test_what_has_no_route_is_refused_in_openais_form(place: Place) -> None:
    """And a body that is too large, whether it says so before or not."""
    place = place.with_settings(max_body_bytes=2048)
    async with serving(place) as desk, httpx.AsyncClient(base_url=desk.server.url) as client:

        async def unannounced() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield b" " * 1000

        headers = {"Authorization": f"Bearer {desk.key}"}
        answers = [
            await client.get("/v1/nothing"),
            await client.put("/v1/chat/completions", headers=headers),
            await client.post("/v1/chat/completions", headers=headers, content=b" " * 4000),
            await client.post("/v1/chat/completions", headers=headers, content=unannounced()),
        ]
    found = [(one.status_code, one.json()["error"]["code"]) for one in answers]
    assert found == [
        (404, "not_found"),
        (405, "method_not_allowed"),
        (413, "too_large"),
        (413, "too_large"),
    ]
    for one in answers:
        error = one.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("invalid_request_error", None)


async def _begun(desk: Desk) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request whose body does not go on."""
    host, port = desk.server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {desk.key}\r\n"
    writer.write(f"{head}Content-Length: 500\r\n\r\n{{".encode())
    await writer.drain()
    return reader, writer


async def test_a_body_that_stops_coming_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.server.middleware.PART_SECONDS", 0.2)
    async with serving(place) as desk:
        reader, writer = await _begun(desk)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            told = await reader.readuntil(b"}}")
        writer.close()
    assert head.startswith(b"HTTP/1.1 408")
    error = json.loads(told)["error"]
    assert (error["code"], error["type"]) == ("body_incomplete", "invalid_request_error")


async def test_who_leaves_while_asking_is_no_error_of_ours(place: Place) -> None:
    async with serving(place) as desk:
        with structlog.testing.capture_logs() as logs:
            _, writer = await _begun(desk)
            writer.close()
            await until(lambda: any(line["event"] == "http.answered" for line in logs))
    assert [line["status"] for line in logs if line["event"] == "http.answered"] == [499]
    assert not any(line["log_level"] == "error" for line in logs)
