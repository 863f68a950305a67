"""The torch engine: its cache, failures in a step, and closing. What every runtime does is in
``tests/chatbot/engine_contract``."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chatbot.engine.interface import Chunk, Engine
from chatbot.engine.torch.engine import TorchEngine
from chatbot.engine.torch.models import Decoder
from chatbot.engine.torch.runner import TorchRunner
from chatbot.engine.torch.sampling import Choice
from chatbot.engine.torch.scheduler import Step
from chatbot.errors import BaseModelUnavailable, ModelError, Overloaded, RequestRefused
from tests.chatbot.engine.helpers import (
    END,
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
    nothing: Any = None
    engine: Engine = TorchEngine(tiny_settings(), nothing, nothing)  # mypy's word
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


async def test_a_stop_string_at_the_very_end_is_not_delivered_and_its_start_is() -> None:
    runner = ScriptedRunner({1: script("yes STOP"), 2: script("yes STO")})
    async with running(tiny_model(), runner=runner) as engine:
        assert await text_of(engine, request([1], stop=("STOP",))) == "yes "
        assert await text_of(engine, request([2], stop=("STOP",))) == "yes STO"
        assert await text_of(engine, request([1], stop=("STOP",), max_tokens=8)) == "yes "


# -- sampling in the whole engine


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
                # needed
                assert usage.cached_tokens == before - 1
            history += [token for chunk in chunks for token in chunk.token_ids]
        model = tiny_model()
        assert history[-21:] == generate(model, history[:-21], 21)


# -- slow readers


async def test_a_reader_who_never_reads_costs_a_bounded_amount() -> None:
    async with running(tiny_model()) as engine:
        stream = engine.submit(request(PROMPT, max_tokens=50, ignore_eos=True))
        await until(lambda: engine.stats().running == 0)
        assert stream._reply.queue.maxsize == 51
        assert sum([len(chunk.token_ids) async for chunk in stream]) == 50


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
    def load_model(*_: Any) -> Any:
        raise BaseModelUnavailable("no such model")

    engine = TorchEngine(tiny_settings(), load_model, load_model)
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
    assert set(threading.enumerate()) <= threads
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
        assert stats.prefill_tokens_cached == len(PROMPT) - 1
        assert stats.prefill_tokens_computed == len(PROMPT) + 1
        assert stats.blocks_total == 256
        assert stats.blocks_cached == 2
        assert stats.last_step_seconds > 0
