"""What a stream of any runtime looks like, to its end, and when it is left early."""

import asyncio
import gc
from contextlib import aclosing

import pytest

from chatbot.engine.interface import Chunk, Engine, GenerationRequest
from chatbot.errors import Overloaded
from tests.chatbot.engine.helpers import collect, request, text_of, until
from tests.chatbot.engine_contract.conftest import Running
from tests.chatbot.engine_contract.talker import TEXT, script

IDS = script()
PROMPT = IDS[:3]  # "Hello there, your"
REST = TEXT.removeprefix("Hello there, your")


def long(**more: object) -> GenerationRequest:
    """A request that a test can catch while it runs."""
    return request(PROMPT, max_tokens=400, ignore_eos=True, **more)


async def idle(engine: Engine) -> None:
    await until(lambda: engine.stats().running + engine.stats().waiting == 0, 60)


async def test_the_stream_is_the_whole_text_and_its_last_chunk_alone_has_the_end(
    running: Running,
) -> None:
    async with running() as engine:
        chunks = await collect(engine, request(PROMPT))
    assert "".join(chunk.text for chunk in chunks) == REST
    assert len(chunks) > 5
    *others, last = chunks
    assert all(
        (chunk.finish_reason, chunk.usage, chunk.confidence) == (None, None, None)
        for chunk in others
    )
    assert last.finish_reason == "end"
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(PROMPT)
    assert 0 <= last.usage.cached_tokens < len(PROMPT)
    assert last.usage.completion_tokens == len(IDS) - len(PROMPT) + 1  # the end is a token
    assert last.confidence is None or 0 < last.confidence <= 1
    assert (last.probability is None) == (last.confidence is None)
    assert last.confidence is None or 0 < last.probability <= last.confidence
    told = [token for chunk in chunks for token in chunk.token_ids]
    assert not told or told[: len(IDS) - len(PROMPT)] == IDS[3:]


async def test_characters_are_never_cut(running: Running) -> None:
    async with running() as engine:
        chunks = await collect(engine, request(PROMPT))
    assert "".join(chunk.text for chunk in chunks).endswith("naé 日👍")
    for chunk in chunks:
        chunk.text.encode()  # no half of a surrogate pair either
        assert "\ufffd" not in chunk.text


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_max_tokens_ends_with_length(running: Running, count: int) -> None:
    async with running() as engine:
        chunks = await collect(engine, request(PROMPT, max_tokens=count))
    words = ("", " parcel", " left", " today", ": na")
    first = "".join(words[: count + 1]) if count < 5 else " parcel left today: na\ufffd"
    assert "".join(chunk.text for chunk in chunks) in (first, first.rstrip("\ufffd"))
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == count


async def test_a_reply_never_grows_beyond_the_context(running: Running) -> None:
    async with running(max_context_tokens=128) as engine:
        assert engine.max_context == 128
        asked = request([*IDS[:1] * 117, *PROMPT], max_tokens=50, ignore_eos=True)
        chunks = await collect(engine, asked)
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


async def test_ignore_eos_goes_on(running: Running) -> None:
    async with running() as engine:
        text = await text_of(engine, request(PROMPT, max_tokens=40, ignore_eos=True))
    assert text.startswith(REST + "Hello there")


@pytest.mark.parametrize("stop", ["today", "left to", "é", " 日", "日👍"])
async def test_a_stop_string_ends_the_reply_before_it_however_its_tokens_lie(
    running: Running, stop: str
) -> None:
    async with running() as engine:
        chunks = await collect(engine, request(PROMPT, stop=(stop, "never")))
        await idle(engine)
    assert "".join(chunk.text for chunk in chunks) == REST.split(stop)[0]
    assert chunks[-1].finish_reason == "end"


async def test_the_start_of_a_stop_string_is_delivered_when_the_rest_does_not_come(
    running: Running,
) -> None:
    async with running() as engine:
        assert await text_of(engine, request(PROMPT, stop=("👍 and",))) == REST
        asked = request(PROMPT, stop=(" left home",), max_tokens=2)
        assert await text_of(engine, asked) == " parcel left"


async def test_the_same_seed_gives_the_same_reply_whatever_else_runs(running: Running) -> None:
    params = {"temperature": 5.0, "top_p": 0.999, "max_tokens": 12, "ignore_eos": True}
    async with running() as engine:
        alone = await text_of(engine, request(PROMPT, seed=42, **params))
        crowd = [
            asyncio.create_task(text_of(engine, request(IDS[:n], seed=n, **params)))
            for n in (1, 2, 4)
        ]
        assert await text_of(engine, request(PROMPT, seed=42, **params)) == alone
        await asyncio.gather(*crowd)
        others = {await text_of(engine, request(PROMPT, seed=n, **params)) for n in range(5)}
    assert others != {alone}


async def test_a_repetition_penalty_changes_the_reply(running: Running) -> None:
    async with running() as engine:
        # all that could come next has been in the prompt, but for the second choice
        prompt = [*IDS, *PROMPT]
        plain = await text_of(engine, request(prompt, max_tokens=3))
        fined = await text_of(engine, request(prompt, max_tokens=3, repetition_penalty=5.0))
    assert plain == " parcel left today"
    assert fined.startswith("?")


# -- leaving early


async def test_cancel_ends_with_stopped(running: Running) -> None:
    async with running() as engine:
        asked = long()
        chunks: list[Chunk] = []
        async for chunk in engine.submit(asked):
            chunks.append(chunk)
            if len(chunks) == 2:
                await engine.cancel(asked.request_id)
        await engine.cancel(asked.request_id)  # has ended: ignored
        await engine.cancel("unknown")
        await idle(engine)
        assert engine.stats().blocks_used == 0
    assert chunks[-1].finish_reason == "stopped"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens < 400
    whole = REST + TEXT * 20
    assert whole.startswith("".join(chunk.text for chunk in chunks).rstrip("\ufffd"))


async def test_cancel_before_the_first_token(running: Running) -> None:
    async with running(max_running=1) as engine:
        first = engine.submit(long())
        waiting = request(PROMPT, max_tokens=5)
        stream = engine.submit(waiting)
        await engine.cancel(waiting.request_id)
        chunks = [chunk async for chunk in stream]
        assert [(c.text, c.finish_reason, c.confidence) for c in chunks] == [("", "stopped", None)]
        await first.aclose()


async def test_closing_the_stream_cancels(running: Running) -> None:
    async with running() as engine:
        async with aclosing(engine.submit(long())) as stream:
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.aclose()  # twice does no harm
        await idle(engine)
        assert engine.stats().generated_tokens < 400


async def test_a_stream_that_is_dropped_is_cancelled(running: Running) -> None:
    async with running() as engine:
        async for _ in engine.submit(long()):
            break
        gc.collect()
        await idle(engine)
        assert engine.stats().generated_tokens < 400


async def test_closing_the_engine_ends_its_streams(running: Running) -> None:
    async with running() as engine:
        stream = engine.submit(long())
        await anext(stream)
        reader = asyncio.create_task(_last(stream))
        await asyncio.sleep(0)
    assert (await reader).finish_reason == "stopped"
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await engine.close()  # twice does no harm
    with pytest.raises(Overloaded, match="not running"):
        engine.submit(request(PROMPT))


async def _last(stream: object) -> Chunk:
    return [chunk async for chunk in stream][-1]  # type: ignore[attr-defined]


async def test_stats_count(running: Running) -> None:
    async with running() as engine:
        for _ in range(2):
            await collect(engine, request(PROMPT, max_tokens=5))
        stats = engine.stats()
        assert (stats.waiting, stats.running, stats.blocks_used) == (0, 0, 0)
        assert stats.generated_tokens == 10
        assert stats.prefill_tokens_computed + stats.prefill_tokens_cached == 2 * len(PROMPT)
        assert stats.last_step_seconds > 0
        assert stats.adapters == ()
        assert stats.healthy
        stream = engine.submit(long())
        await anext(stream)
        assert engine.stats().running == 1
        await stream.aclose()
