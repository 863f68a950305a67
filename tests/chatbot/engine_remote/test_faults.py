"""A model server that breaks off, stalls, refuses, talks nonsense, goes away and comes back."""

import asyncio
from contextlib import aclosing

import pytest

from chatbot.engine.interface import Chunk
from chatbot.errors import (
    BaseModelUnavailable,
    EngineBusy,
    ModelError,
    Overloaded,
    RequestRefused,
    SettingsError,
)
from tests.chatbot.engine.helpers import collect, request, text_of, until
from tests.chatbot.engine_contract.served import free_port
from tests.chatbot.engine_remote.conftest import (
    PROMPT,
    TEXT,
    TOKENS,
    Connected,
    encode,
    model_server,
)
from tests.chatbot.engine_remote.model_server import Fault, ModelServer

KINDS = ["cut", "end", "garbage", "error", "abort"]


def whole(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
@pytest.mark.parametrize("kind", KINDS)
async def test_text_is_neither_lost_nor_doubled_wherever_the_stream_breaks(
    connected: Connected, server: ModelServer, kind: str, ids: bool
) -> None:
    server.ids = ids
    async with connected() as engine:
        for after in range(0, TOKENS + 1, 1 if kind == "cut" else 7):
            server.faults = [Fault(kind, after), Fault(kind, 2)]
            chunks = await collect(engine, request(PROMPT))
            assert whole(chunks) == TEXT, after
            assert not any("\ufffd" in chunk.text for chunk in chunks)
            assert chunks[-1].finish_reason == "end"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens == TOKENS + 1
        # the calls that went on began where the last one was cut
        assert server.calls[-1]["prompt"][: len(PROMPT)] == PROMPT
        assert server.calls[-1]["max_tokens"] < server.calls[-3]["max_tokens"]


async def test_a_stream_that_stalls_is_left_and_continued(
    connected: Connected, server: ModelServer
) -> None:
    server.faults = [Fault("stall", 5)]
    async with connected(remote_idle_seconds=0.2) as engine:
        assert await text_of(engine, request(PROMPT)) == TEXT
        await until(lambda: server.closed == 1, 30)  # the server was told to stop


async def test_no_first_token_in_time_is_tried_again_and_then_given_up(
    connected: Connected, server: ModelServer
) -> None:
    async with connected(remote_first_token_seconds=0.2, remote_retries=1) as engine:
        server.faults = [Fault("stall")]
        assert await text_of(engine, request(PROMPT)) == TEXT
        server.faults = [Fault("stall"), Fault("stall")]
        with pytest.raises(Overloaded, match="silent for too long") as failed:
            await collect(engine, request(PROMPT))
        assert failed.value.retry_after > 0
        assert len(server.calls) == 4


async def test_retries_end(connected: Connected, server: ModelServer) -> None:
    async with connected(remote_retries=2) as engine:
        server.faults = [Fault("status", status=500, body={"error": {"message": "boom"}})] * 3
        with pytest.raises(Overloaded, match="500: boom"):
            await collect(engine, request(PROMPT))
        assert len(server.calls) == 3
        server.faults = [Fault("cut", 3), Fault("cut", 3), Fault("cut", 3)]
        stream = engine.submit(request(PROMPT))
        with pytest.raises(Overloaded):
            async for _ in stream:
                pass
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert engine.stats().running == 0
        assert await text_of(engine, request(PROMPT)) == TEXT


async def test_a_seeded_draw_is_not_continued_as_another_draw(
    connected: Connected, server: ModelServer
) -> None:
    async with connected() as engine:
        server.faults = [Fault("cut", 0)]
        asked = {"temperature": 1.0, "seed": 3}
        assert await text_of(engine, request(PROMPT, **asked)) == TEXT  # nothing was said yet
        server.faults = [Fault("cut", 4)]
        with pytest.raises(Overloaded):
            await collect(engine, request(PROMPT, **asked))
        server.faults = [Fault("cut", 4)]
        assert await text_of(engine, request(PROMPT, temperature=1.0)) == TEXT


@pytest.mark.parametrize(
    ("status", "headers", "error", "seconds"),
    [
        (429, {"retry-after": "7"}, EngineBusy, 7.0),
        (503, {}, EngineBusy, 2.0),
        (429, {"retry-after": "100000"}, EngineBusy, 60.0),
        (429, {"retry-after": "Sat, 28 Nov 2026 10:00:00 GMT"}, EngineBusy, 2.0),
        (400, {}, RequestRefused, None),
        (422, {}, RequestRefused, None),
        (401, {}, BaseModelUnavailable, None),
    ],
)
async def test_what_a_refusal_means(
    connected: Connected,
    server: ModelServer,
    status: int,
    headers: dict[str, str],
    error: type[Exception],
    seconds: float | None,
) -> None:
    async with connected() as engine:
        calls = len(server.calls)
        server.faults = [Fault("status", status=status, headers=headers)]
        with pytest.raises(error) as refused:
            await collect(engine, request(PROMPT))
        assert getattr(refused.value, "retry_after", None) == seconds
        assert len(server.calls) == calls + 1  # not tried again


async def test_a_server_that_writes_without_end_is_cut_off(
    connected: Connected, server: ModelServer
) -> None:
    async with connected() as engine:
        server.faults = [Fault("endless", 2)]
        chunks = await collect(engine, request(PROMPT, max_tokens=30))
        assert chunks[-1].finish_reason == "length"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 30
        await until(lambda: server.closed == 1, 30)


async def test_leaving_a_stream_closes_the_connection(
    connected: Connected, server: ModelServer
) -> None:
    async with connected() as engine:
        server.faults = [Fault("stall", 3)]
        async with aclosing(engine.submit(request(PROMPT))) as stream:
            await anext(stream)
        await until(lambda: server.closed == 1, 30)
        server.faults = [Fault("stall", 3)]
        asked = request(PROMPT)
        chunks = []
        async for chunk in engine.submit(asked):
            chunks.append(chunk)
            if len(chunks) == 2:
                await engine.cancel(asked.request_id)
        assert chunks[-1].finish_reason == "stopped"
        await until(lambda: server.closed == 2, 30)
        # a stop string, too: the server is not asked for what nobody wants
        server.faults = [Fault("endless", 2)]
        assert await text_of(engine, request(PROMPT, stop=("xxx",))) == "Gr"
        await until(lambda: server.closed == 3, 30)


# -- away, and back


async def test_a_server_that_is_away_at_start_is_waited_for(connected: Connected) -> None:
    port = free_port()
    async with connected(f"http://127.0.0.1:{port}/v1") as engine:
        assert not engine.stats().healthy
        with pytest.raises(EngineBusy, match="away") as busy:
            engine.submit(request(PROMPT))
        assert busy.value.retry_after > 0
        async with model_server().running(port):
            await until(lambda: engine.stats().healthy, 30)
            assert await text_of(engine, request(PROMPT)) == TEXT
            assert engine.max_context == 512
        with pytest.raises(Overloaded):  # the first to see it gone ...
            await collect(engine, request(PROMPT))
        await until(lambda: not engine.stats().healthy, 30)
        with pytest.raises(EngineBusy, match="away"):  # ... and nobody waits for it after that
            engine.submit(request(PROMPT))


async def test_a_failing_health_check_takes_the_engine_out(
    connected: Connected, server: ModelServer
) -> None:
    async with connected() as engine:
        server.healthy = False
        await until(lambda: not engine.stats().healthy, 30)
        server.healthy = True
        await until(lambda: engine.stats().healthy, 30)
        assert await text_of(engine, request(PROMPT)) == TEXT


async def test_another_model_that_comes_back_is_not_used(
    connected: Connected, server: ModelServer
) -> None:
    async with connected(remote_model="talker") as engine:
        server.healthy = False
        await until(lambda: not engine.stats().healthy, 30)
        server.healthy, server.encode = True, lambda text: [*encode(text), 1]
        await until(lambda: engine._problem is not None, 30)
        with pytest.raises(BaseModelUnavailable, match="other tokens than the base model"):
            engine.submit(request(PROMPT))


# -- what is wrong is named at start


async def test_a_mismatched_base_is_named_at_start(
    connected: Connected, server: ModelServer
) -> None:
    server.encode = lambda text: [*encode(text), 1]
    with pytest.raises(BaseModelUnavailable, match="FRONTDESK_BASE_MODEL"):
        async with connected():
            pass


@pytest.mark.parametrize(
    ("models", "settings", "error", "message"),
    [
        ({"a": "/a"}, {"remote_model": "b"}, BaseModelUnavailable, "no such model; it has a"),
        ({"a": "/a"}, {"remote_url": "8000"}, SettingsError, "FRONTDESK_REMOTE_URL"),
    ],
)
async def test_a_wrong_setting_is_named_at_start(
    connected: Connected,
    server: ModelServer,
    models: dict[str, str],
    settings: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    server.models = models
    with pytest.raises(error, match=message):
        async with connected(settings.pop("remote_url", ""), **settings):
            pass


async def test_a_key_is_sent_and_a_wrong_one_is_named(
    connected: Connected, server: ModelServer
) -> None:
    server.key = "k1"
    with pytest.raises(BaseModelUnavailable, match="FRONTDESK_REMOTE_KEY"):
        async with connected():
            pass
    async with connected(remote_key="k1") as engine:
        assert await text_of(engine, request(PROMPT)) == TEXT


async def test_a_model_that_the_server_lost_is_an_error(
    connected: Connected, server: ModelServer
) -> None:
    async with connected(remote_model="talker") as engine:
        server.models = {"other": "/models/other"}
        with pytest.raises(ModelError, match="lost its model"):
            await collect(engine, request(PROMPT))


async def test_many_at_once_keep_to_the_limit(connected: Connected, server: ModelServer) -> None:
    async with connected(max_running=2, max_waiting=6) as engine:
        asked = [request(PROMPT) for _ in range(8)]
        tasks = [asyncio.create_task(text_of(engine, each)) for each in asked]
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy):
            engine.submit(request(PROMPT))
        assert engine.stats().running <= 2
        assert await asyncio.gather(*tasks) == [TEXT] * 8
