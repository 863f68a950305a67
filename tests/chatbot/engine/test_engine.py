"""The engine as a worker sees it: streams, ends, cancels, failures, and closing."""

import asyncio
import gc
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
import torch

from chatbot.engine.interface import Chunk, Engine
from chatbot.engine.torch.engine import TorchEngine
from chatbot.engine.torch.models import Decoder
from chatbot.engine.torch.runner import TorchRunner
from chatbot.engine.torch.sampling import Choice
from chatbot.engine.torch.scheduler import Step
from chatbot.errors import BaseModelUnavailable, EngineBusy, ModelError, Overloaded, RequestRefused
from tests.chatbot.engine.helpers import (
    END,
    VOCABULARY,
    ScriptedRunner,
    collect,
    generate,
    request,
    running,
    text_of,
    tiny_model,
    tiny_settings,
    tokens_of,
    until,
)

PROMPT = list(b"How do I return my order?")


def script(text: str) -> list[int]:
    return [*text.encode(), END]


# -- what a stream looks like


def test_the_engine_is_an_engine() -> None:
    engine: Engine = TorchEngine(tiny_settings(), lambda *_: (None, None))  # mypy's word
    assert engine.submit is not None


async def test_a_stream_ends_with_reason_usage_and_confidence() -> None:
    async with running(tiny_model(), runner=ScriptedRunner({1: script("Hi!")})) as engine:
        chunks = await collect(engine, request([1, 2, 3]))
    assert "".join(chunk.text for chunk in chunks) == "Hi!"
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "end"]
    last = chunks[-1]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 4)
    assert last.confidence == 0.5
    assert all(chunk.usage is None and chunk.confidence is None for chunk in chunks[:-1])


async def test_max_tokens_ends_with_length() -> None:
    async with running(tiny_model(), runner=ScriptedRunner({1: script("Hello")})) as engine:
        chunks = await collect(engine, request([1], max_tokens=2))
    assert [chunk.text for chunk in chunks] == ["H", "e"]
    assert chunks[-1].finish_reason == "length"


async def test_a_reply_never_grows_beyond_the_context() -> None:
    async with running(tiny_model(), max_context_tokens=128) as engine:
        assert engine.max_context == 128
        chunks = await collect(engine, request([1] * 120, max_tokens=50, ignore_eos=True))
        assert chunks[-1].finish_reason == "length"
        assert sum(len(chunk.token_ids) for chunk in chunks) == 8


async def test_ignore_eos_goes_on() -> None:
    runner = ScriptedRunner({1: [END, *b"more", END]})
    async with running(tiny_model(), runner=runner) as engine:
        assert await text_of(engine, request([1], max_tokens=5, ignore_eos=True)) == "more"
        assert await text_of(engine, request([1], max_tokens=5)) == ""


@pytest.mark.parametrize("stop", ["\nUser:", "ser", "👍"])
async def test_stop_strings_over_tokens(stop: str) -> None:
    text = "Sure.\nUser: 👍 thanks"
    async with running(tiny_model(), runner=ScriptedRunner({1: script(text)})) as engine:
        chunks = await collect(engine, request([1], stop=(stop, "never")))
        assert "".join(chunk.text for chunk in chunks) == text.split(stop)[0]
        assert chunks[-1].finish_reason == "end"
        assert engine.stats().blocks_used == 0


async def test_a_stop_string_at_the_very_end_is_not_delivered_and_its_start_is() -> None:
    runner = ScriptedRunner({1: script("yes STOP"), 2: script("yes STO")})
    async with running(tiny_model(), runner=runner) as engine:
        assert await text_of(engine, request([1], stop=("STOP",))) == "yes "
        assert await text_of(engine, request([2], stop=("STOP",))) == "yes STO"
        assert await text_of(engine, request([1], stop=("STOP",), max_tokens=8)) == "yes "


async def test_characters_are_never_cut() -> None:
    text = "Naïve 👩‍👩‍👧 日本"
    async with running(tiny_model(), runner=ScriptedRunner({1: script(text)})) as engine:
        chunks = await collect(engine, request([1]))
    assert "".join(chunk.text for chunk in chunks) == text
    assert not any("\ufffd" in chunk.text for chunk in chunks)


# -- sampling in the whole engine


async def test_the_same_seed_gives_the_same_reply_whatever_else_runs() -> None:
    params = {"temperature": 1.0, "top_p": 0.95, "seed": 42, "max_tokens": 30, "ignore_eos": True}
    async with running(tiny_model(), prefill_chunk_tokens=16) as engine:
        alone = await tokens_of(engine, request(PROMPT, **params))
        others = [
            request([*PROMPT, i], temperature=1.5, seed=i, max_tokens=10 + i, ignore_eos=True)
            for i in range(6)
        ]
        crowd = [asyncio.create_task(tokens_of(engine, other)) for other in others]
        assert await tokens_of(engine, request(PROMPT, **params)) == alone
        await asyncio.gather(*crowd)
        assert await tokens_of(engine, request(PROMPT, **(params | {"seed": 43}))) != alone


async def test_without_a_seed_replies_differ() -> None:
    async with running(tiny_model()) as engine:
        params = {"temperature": 2.0, "max_tokens": 20, "ignore_eos": True}
        first, second = [await tokens_of(engine, request(PROMPT, **params)) for _ in range(2)]
        assert first != second


# -- the cache over turns


async def test_the_second_turn_s_cached_tokens_cover_the_first_turn() -> None:
    async with running(tiny_model()) as engine:
        history = list(PROMPT)
        for turn in range(4):
            before = len(history)
            if turn:
                history += list(b" And then?")
            chunks = await collect(engine, request(history, max_tokens=21, ignore_eos=True))
            usage = chunks[-1].usage
            assert usage is not None
            if turn:
                # all of the earlier turns but the last token, whose keys and values were never
                # needed, down to a whole block
                assert usage.cached_tokens == (before - 1) // 16 * 16
            history += [token for chunk in chunks for token in chunk.token_ids]
        model = tiny_model()
        assert history[-21:] == generate(model, history[:-21], 21)


# -- cancelling


async def test_cancel_ends_with_stopped_and_frees_blocks() -> None:
    async with running(tiny_model()) as engine:
        asked = request(PROMPT, max_tokens=400, ignore_eos=True)
        stream = engine.submit(asked)
        await anext(stream)
        assert engine.stats().blocks_used > 0
        await engine.cancel(asked.request_id)
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].finish_reason == "stopped"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens < 400
        assert engine.stats().blocks_used == 0
        await engine.cancel(asked.request_id)  # has ended: ignored


async def test_cancel_before_the_first_token() -> None:
    async with running(tiny_model(), max_running=1) as engine:
        first = engine.submit(request(PROMPT, max_tokens=400, ignore_eos=True))
        waiting = request(PROMPT, max_tokens=5)
        stream = engine.submit(waiting)
        await engine.cancel(waiting.request_id)
        (chunk,) = [chunk async for chunk in stream]
        assert (chunk.text, chunk.finish_reason, chunk.confidence) == ("", "stopped", None)
        await first.aclose()


async def test_closing_the_stream_cancels() -> None:
    async with running(tiny_model()) as engine:
        asked = request(PROMPT, max_tokens=400, ignore_eos=True)
        async with aclosing(engine.submit(asked)) as stream:
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await until(lambda: engine.stats().running == 0)
        assert engine.stats().blocks_used == 0
        assert engine.stats().generated_tokens < 400


async def test_a_stream_that_is_dropped_is_cancelled() -> None:
    async with running(tiny_model()) as engine:
        async for _ in engine.submit(request(PROMPT, max_tokens=400, ignore_eos=True)):
            break
        gc.collect()
        await until(lambda: engine.stats().running == 0)
        assert engine.stats().generated_tokens < 400


async def test_a_reader_who_never_reads_costs_a_bounded_amount() -> None:
    async with running(tiny_model()) as engine:
        stream = engine.submit(request(PROMPT, max_tokens=50, ignore_eos=True))
        await until(lambda: engine.stats().running == 0)
        assert stream._reply.queue.maxsize == 51
        assert sum([len(chunk.token_ids) async for chunk in stream]) == 50


# -- refusals


async def test_a_full_engine_refuses_before_the_first_chunk() -> None:
    async with running(tiny_model(), max_running=1, max_waiting=1) as engine:
        streams = [engine.submit(request([i], max_tokens=400, ignore_eos=True)) for i in (1, 2)]
        with pytest.raises(EngineBusy) as refused:
            engine.submit(request([3]))
        assert 0.1 <= refused.value.retry_after <= 60
        for stream in streams:
            await stream.aclose()
        await until(lambda: engine.stats().running + engine.stats().waiting == 0)
        assert len(await tokens_of(engine, request([3], max_tokens=4, ignore_eos=True))) == 4


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "empty"),
        ([1] * 512, "512 tokens and leaves no room"),
        ([VOCABULARY], "outside 0..259"),
        ([-1], "outside 0..259"),
    ],
)
async def test_prompts_that_cannot_be_answered_are_refused(prompt: list[int], reason: str) -> None:
    async with running(tiny_model()) as engine:
        with pytest.raises(RequestRefused, match=reason):
            engine.submit(request(prompt))


async def test_an_id_that_is_being_answered_is_refused() -> None:
    async with running(tiny_model()) as engine:
        asked = request(PROMPT, max_tokens=300, ignore_eos=True)
        stream = engine.submit(asked)
        with pytest.raises(RequestRefused, match="is being answered already"):
            engine.submit(asked)
        await stream.aclose()


# -- failures


class FailingRunner(TorchRunner):
    """Raises what it is given in the next step that has a prompt starting with token 99."""

    def __init__(self, decoder: Decoder, blocks: int, block_size: int, error: Exception) -> None:
        super().__init__(decoder, blocks, block_size)
        self.error = error

    def run(self, step: Step) -> list[Choice]:
        if any(work.sequence.prompt[0] == 99 for work in step.works):
            raise self.error
        return super().run(step)


def failing(error: Exception) -> Callable[[Decoder, int, int], FailingRunner]:
    return lambda decoder, blocks, size: FailingRunner(decoder, blocks, size, error)


@pytest.mark.parametrize(
    ("error", "mapped"),
    [
        (RuntimeError("a shape is wrong: secret"), ModelError),
        (torch.OutOfMemoryError("CUDA out of memory"), Overloaded),
        (MemoryError(), Overloaded),
        (RequestRefused("as it is"), RequestRefused),
    ],
)
async def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(
    error: Exception, mapped: type[Exception]
) -> None:
    async with running(tiny_model(), runner=failing(error)) as engine:
        with pytest.raises(mapped) as failed:
            await collect(engine, request([99, 1]))
        assert "secret" not in str(failed.value)
        assert engine.stats().blocks_used == 0
        asked = request(PROMPT, max_tokens=20, ignore_eos=True)
        assert await tokens_of(engine, asked) == generate(tiny_model(), PROMPT, 20)


async def test_a_failing_step_fails_everyone_in_it_once() -> None:
    async with running(tiny_model(), runner=failing(RuntimeError("x"))) as engine:
        beside = engine.submit(request(PROMPT, max_tokens=400, ignore_eos=True))
        await anext(beside)
        with pytest.raises(ModelError):
            await collect(engine, request([99]))
        with pytest.raises(ModelError):
            async for _ in beside:
                pass
        with pytest.raises(StopAsyncIteration):
            await anext(beside)
        assert engine.stats().running == 0


async def test_values_that_are_not_finite_fail_their_own_reply_alone() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[99] = float("nan")
    prompt = [p for p in PROMPT if p != 99]
    wanted = generate(tiny_model(), prompt, 40)
    assert 99 not in wanted
    async with running(model, kv_cache_tokens=1024) as engine:
        beside = asyncio.create_task(
            tokens_of(engine, request(prompt, max_tokens=40, ignore_eos=True))
        )
        with pytest.raises(ModelError, match="not finite"):
            await collect(engine, request([99] * 40))
        assert await beside == wanted
        # every block is used again: nothing of the broken values may be left in any
        fillers = [request([i] * 200, max_tokens=100, ignore_eos=True) for i in range(4)]
        await asyncio.gather(*(collect(engine, filler) for filler in fillers))
        assert engine.stats().blocks_used == 0
        asked = request(prompt, max_tokens=40, ignore_eos=True)
        assert await tokens_of(engine, asked) == wanted


async def test_blocks_of_broken_values_are_not_kept_as_a_prefix() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[99] = float("nan")
    async with running(model, prefill_chunk_tokens=64) as engine:
        with pytest.raises(ModelError, match="not finite"):
            await collect(engine, request([99] * 100))  # the first chunk looked well: no logits
        assert engine.stats().blocks_cached == 0


async def test_a_base_model_that_does_not_load_says_so() -> None:
    def load_base(*_: Any) -> tuple[Any, Any]:
        raise BaseModelUnavailable("no such model")

    engine = TorchEngine(tiny_settings(), load_base)
    with pytest.raises(BaseModelUnavailable, match="no such model"):
        await engine.start()
    await engine.close()


async def test_a_cache_that_memory_cannot_hold_says_so() -> None:
    with pytest.raises(BaseModelUnavailable, match="lower FRONTDESK_KV_CACHE_TOKENS"):
        async with running(tiny_model(), kv_cache_tokens=10**13 // 16):
            pass


# -- closing


async def test_close_ends_streams_and_leaves_no_thread_or_task() -> None:
    threads = set(threading.enumerate())
    engine: TorchEngine
    async with running(tiny_model()) as engine:
        stream = engine.submit(request(PROMPT, max_tokens=400, ignore_eos=True))
        await anext(stream)
        reader = asyncio.create_task(_last(stream))
    assert (await reader).finish_reason == "stopped"
    assert set(threading.enumerate()) == threads
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await engine.close()
    with pytest.raises(Overloaded, match="not running"):
        engine.submit(request(PROMPT))


async def _last(stream: Any) -> Chunk:
    return [chunk async for chunk in stream][-1]


async def test_starting_twice_starts_once() -> None:
    async with running(tiny_model()) as engine:
        thread = engine._thread
        await engine.start()
        assert engine._thread is thread


async def test_stats_count() -> None:
    async with running(tiny_model()) as engine:
        for _ in range(2):
            await collect(engine, request(PROMPT, max_tokens=5, ignore_eos=True))
        stats = engine.stats()
        assert (stats.waiting, stats.running, stats.blocks_used) == (0, 0, 0)
        assert stats.generated_tokens == 10
        assert stats.prefill_tokens_cached == 16
        assert stats.prefill_tokens_computed == 2 * len(PROMPT) - 16
        assert stats.blocks_total == 256
        assert stats.blocks_cached == 1
        assert stats.last_step_seconds > 0
