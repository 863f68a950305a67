"""Chat completions as the official client sees them."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from chatbot.errors import EngineBusy
from chatbot.server.api_keys import list_keys, revoke_key
from tests.chatbot.server.completions.conftest import BASE, HELLO, TEXT, Desk, serving
from tests.chatbot.server.room import until
from tests.chatbot.worker.conftest import Place


async def test_a_whole_reply(desk: Desk) -> None:
    answer = await desk.ask()
    (choice,) = answer.choices
    assert choice.message.content == TEXT
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert (answer.object, answer.model) == ("chat.completion", BASE)
    usage = answer.usage
    assert usage.completion_tokens == len(TEXT)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 4


async def test_a_streamed_reply(desk: Desk) -> None:
    chunks = [chunk async for chunk in await desk.ask(stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_ends_with_its_usage_when_asked(desk: Desk) -> None:
    options = {"include_usage": True}
    chunks = [chunk async for chunk in await desk.ask(stream=True, stream_options=options)]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(TEXT)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_stream_is_told_while_it_is_written(desk: Desk) -> None:
    desk.engine.hold_at = 6
    stream = await desk.ask(stream=True)
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if text == TEXT[:6]:
            break
    desk.engine.go.set()
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
    assert text == TEXT


async def test_parameters_reach_the_engine(desk: Desk) -> None:
    await desk.ask(
        temperature=0.5,
        top_p=0.9,
        seed=-7,
        stop="END",
        max_completion_tokens=40,
        n=1,
        presence_penalty=0,
        user="somebody",
        extra_body={"top_k": 5, "repetition_penalty": 1.2, "ignore_eos": True, "tools": []},
    )
    sampling = desk.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, -7)
    assert (sampling.stop, sampling.max_tokens) == (("END",), 40)
    assert (sampling.top_k, sampling.repetition_penalty) == (5, 1.2)
    assert sampling.ignore_eos
    await desk.ask(stop=["a", "b"], max_tokens=3)
    sampling = desk.engine.requests[-1].sampling
    assert (sampling.stop, sampling.max_tokens) == (("a", "b"), 3)
    await desk.ask()
    sampling = desk.engine.requests[-1].sampling
    settings = desk.place.services.settings
    assert sampling.max_tokens == settings.reply_max_tokens
    assert sampling.temperature == settings.temperature


async def test_messages_become_one_prompt(desk: Desk) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
        },
        {"role": "assistant", "content": "Hi.", "refusal": None, "tool_calls": None},
        {"role": "tool", "content": "order 5: sent", "tool_call_id": "x"},
        {"role": "user", "content": "And?"},
    ]
    await desk.ask(messages=messages)
    assert desk.engine.prompts[-1] == (
        "System:\nBe brief.\x00\nUser:\nHello\x00\nAssistant:\nHi.\x00\n"
        "Lookup:\norder 5: sent\x00\nUser:\nAnd?\x00\nAssistant:\n"
    ).replace("\x00", desk.engine.tokenizer.decode([desk.engine.tokenizer.eos_token_id]))  # type: ignore[list-item]


async def test_keys_do_not_share_cached_prompts(desk: Desk) -> None:
    """How much of a prompt was cached is told; it must not tell what others asked."""
    await desk.ask()
    await desk.client.with_options(api_key=desk.place.services.admin_token).models.list()
    other = desk.client.with_options(api_key=desk.place.services.admin_token)
    await other.chat.completions.create(model="live", messages=HELLO)
    salts = [request.cache_salt for request in desk.engine.requests]
    assert len(set(salts)) == 2
    assert "" not in salts  # which is that of the chats


# -- versions


async def test_versions_are_models(desk: Desk) -> None:
    desk.place.version("v-one")
    desk.place.version("v-two", live=False)
    models = await desk.client.models.list()
    assert [model.id for model in models.data] == ["live", "v-one", "v-two", BASE] or {
        model.id for model in models.data
    } == {"live", "v-one", "v-two", BASE}
    assert (await desk.client.models.retrieve("live")).root == "v-one"  # type: ignore[attr-defined]
    for model, version in (("live", "v-one"), ("v-two", "v-two"), (BASE, BASE)):
        assert (await desk.ask(model=model)).model == version
        assert desk.engine.requests[-1].adapter == (None if version == BASE else version)


async def test_a_model_that_is_not_there(desk: Desk) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await desk.ask(model="gpt-4o")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await desk.client.models.retrieve("gpt-4o")


async def test_a_corrupt_version_is_named(desk: Desk) -> None:
    directory = desk.place.version("v-bad")
    (directory / "adapter" / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(openai.InternalServerError) as failed:
        await desk.ask(model="v-bad", stream=True)
    assert failed.value.code == "version_corrupt"
    assert "adapter_model.safetensors" in failed.value.message


# -- keys


async def test_a_key_is_required(desk: Desk) -> None:
    async with httpx.AsyncClient(base_url=desk.server.url) as http:
        for path in ("/v1/models", "/v1/models/live"):
            answer = await http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await http.post("/v1/chat/completions", json={})).status_code == 401
    for key in ("fd-wrong", desk.key[:-1]):
        with pytest.raises(openai.AuthenticationError):
            await desk.client.with_options(api_key=key).models.list()


async def test_a_revoked_key_is_out_at_once(desk: Desk) -> None:
    await desk.client.models.list()
    database = desk.place.services.database
    revoke_key(database, "test", list_keys(database)[0].id)
    with pytest.raises(openai.AuthenticationError):
        await desk.ask()


# -- refusals


async def test_a_prompt_that_cannot_fit(desk: Desk) -> None:
    for length in (desk.engine.max_context, 10**6):
        with pytest.raises(openai.BadRequestError) as refused:
            await desk.ask(messages=[{"role": "user", "content": "x" * length}], stream=True)
        assert refused.value.code == "context_length_exceeded"
        assert refused.value.param == "messages"
        assert refused.value.type == "invalid_request_error"
    assert desk.engine.requests == []


async def test_a_busy_engine_says_when_to_come_back(desk: Desk) -> None:
    desk.engine.refuse.append(EngineBusy("full", retry_after=7.0))
    with pytest.raises(openai.RateLimitError) as refused:
        await desk.ask(stream=True)
    assert refused.value.code == "busy"
    assert refused.value.response.headers["retry-after"] == "7"
    assert (await desk.ask()).choices[0].message.content == TEXT


async def test_a_full_queue_says_when_to_come_back(place: Place) -> None:
    async with serving(place.with_settings(api_max_waiting=2)) as desk:
        waiting = [asyncio.create_task(desk.ask()) for _ in range(2)]
        await until(lambda: desk.server.room.exchange.waiting == 2)
        while await place.services.redis.xlen("fd:api:jobs") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        with pytest.raises(openai.RateLimitError) as refused:
            await desk.ask()
        assert int(refused.value.response.headers["retry-after"]) >= 1
        async with place.worker():
            for answer in await asyncio.gather(*waiting):
                assert answer.choices[0].message.content == TEXT


async def test_nobody_waits_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.completions.exchange.PATIENCE", 0.3)
    async with serving(place) as desk:
        with pytest.raises(openai.RateLimitError, match="no worker"):
            await desk.ask()
        while await place.services.redis.xlen("fd:api:jobs"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # and nobody will do the work


async def test_a_bug_tells_nothing(desk: Desk) -> None:
    desk.engine.refuse.append(RuntimeError("password=hunter2"))
    with pytest.raises(openai.InternalServerError) as failed:
        await desk.ask()
    assert "hunter2" not in str(failed.value.body)


# -- leaving


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_stops_the_work(desk: Desk, stream: bool) -> None:
    desk.engine.hold_at = 6
    if stream:
        answer = await desk.ask(stream=True)
        async for _ in answer:
            break
        await answer.close()
    else:
        task = asyncio.create_task(desk.ask())
        await until(lambda: desk.engine.running == 1)
        task.cancel()
        await asyncio.wait([task])
    await until(lambda: len(desk.engine.ended) == 1)
    assert desk.engine.running == 0
    assert desk.server.room.exchange.waiting == 0


async def test_who_leaves_the_queue_costs_nothing(place: Place) -> None:
    async with serving(place) as desk:
        task = asyncio.create_task(desk.ask(stream=True))
        while await place.services.redis.xlen("fd:api:jobs") < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        task.cancel()
        while await place.services.redis.xlen("fd:api:jobs"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        async with place.worker():
            await desk.ask()
        assert len(desk.engine.requests) == 1


async def test_the_numbers_are_told(desk: Desk) -> None:
    await desk.ask()
    async with httpx.AsyncClient(base_url=desk.server.url) as http:
        text = (await http.get("/metrics")).text
    assert 'frontdesk_api_requests_total{outcome="stop"} 1.0' in text
    assert 'frontdesk_api_tokens_total{kind="cached"} 4.0' in text
    assert f'frontdesk_api_tokens_total{{kind="completion"}} {len(TEXT)}.0' in text
    assert "frontdesk_api_first_text_seconds_count 1.0" in text
    assert "frontdesk_api_open 0.0" in text
