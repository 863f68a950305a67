"""The openvino engine: its cache, adapters, and what it keeps on disk. What every runtime does is
in ``tests/chatbot/engine_contract``."""

import asyncio
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("openvino", reason="needs the extra: pip install 'frontdesk[openvino]'")

from chatbot.engine.factory import create_engine
from chatbot.engine.interface import Engine, GenerationRequest
from chatbot.engine.openvino.engine import OpenVinoEngine
from chatbot.errors import (
    AdapterInvalid,
    BaseModelUnavailable,
    ModelError,
    SettingsError,
)
from tests.chatbot.engine.helpers import collect, request, tokens_of, until
from tests.chatbot.engine_openvino.test_graph import make_adapter
from tests.chatbot.engine_openvino.tiny import running, save_tiny, tiny_model, tiny_settings

PROMPT = list(b"How do I return my order, and how long does it take until I have my money?")
LONG = {"max_tokens": 40, "ignore_eos": True}


def test_the_engine_is_an_engine(tiny: Path) -> None:
    engine: Engine = create_engine(tiny_settings(tiny))  # mypy's word
    assert isinstance(engine, OpenVinoEngine)


# -- streams


async def test_a_stream_has_a_chunk_for_each_token_and_ends_with_usage(tiny: Path) -> None:
    async with running(tiny, max_draft_tokens=0) as engine:
        chunks = await collect(engine, request(PROMPT, max_tokens=9, ignore_eos=True))
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 9
    assert [chunk.finish_reason for chunk in chunks] == [None] * 8 + ["length"]
    last = chunks[-1]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(PROMPT), 9)
    assert last.confidence is not None
    assert 0 < last.confidence <= 1


async def test_bytes_that_are_no_characters_are_never_cut_in_the_middle(tiny: Path) -> None:
    """A random model writes random bytes: the streamed text is that of all bytes at once."""
    async with running(tiny) as engine:
        for seed in range(3):
            asked = request(PROMPT, temperature=2.0, seed=seed, max_tokens=60, ignore_eos=True)
            chunks = await collect(engine, asked)
            tokens = [token for chunk in chunks for token in chunk.token_ids]
            whole = engine.tokenizer.decode(tokens, skip_special_tokens=True)
            assert "".join(chunk.text for chunk in chunks) == whole
            for chunk in chunks:
                chunk.text.encode()  # no lone surrogate either


async def test_many_at_once_say_what_each_says_alone(tiny: Path) -> None:
    prompts = [[*PROMPT[: 5 + 9 * i], i] for i in range(8)]
    async with running(tiny) as engine:
        alone = [await tokens_of(engine, request(p, salt="alone", **LONG)) for p in prompts]
        together = await asyncio.gather(
            *(tokens_of(engine, request(p, salt="together", **LONG)) for p in prompts)
        )
    assert together == alone


# -- the cache


async def cached(engine: OpenVinoEngine, asked: GenerationRequest) -> int:
    usage = (await collect(engine, asked))[-1].usage
    assert usage is not None
    return usage.cached_tokens


async def test_the_next_turn_prefills_its_new_text_alone(tiny: Path) -> None:
    async with running(tiny) as engine:
        reply = await tokens_of(engine, request(PROMPT, **LONG))
        before = engine.stats().prefill_tokens_computed
        turn = [*PROMPT, *reply, *b" And then?"]
        assert await cached(engine, request(turn, **LONG)) == len(PROMPT) + len(reply) - 1
        computed = engine.stats().prefill_tokens_computed - before
        assert computed == len(b" And then?") + 1
        fresh = await tokens_of(engine, request(turn, salt="other", **LONG))
        assert await tokens_of(engine, request(turn, **LONG)) == fresh


async def test_nothing_is_shared_across_salts_or_adapters(tiny: Path, tmp_path: Path) -> None:
    async with running(tiny) as engine:
        await engine.load_adapter("v1", make_adapter(tmp_path, "llama", r=4, seed=1))
        assert await cached(engine, request(PROMPT, salt="A", **LONG)) == 0
        assert await cached(engine, request(PROMPT, salt="B", **LONG)) == 0
        assert await cached(engine, request(PROMPT, "v1", salt="A", **LONG)) == 0
        assert await cached(engine, request(PROMPT, salt="A", **LONG)) == len(PROMPT) - 1
        assert await cached(engine, request(PROMPT, "v1", salt="A", **LONG)) == len(PROMPT) - 1


async def test_a_full_cache_preempts_and_the_replies_stay_the_same(tiny: Path) -> None:
    prompts = [[i, *PROMPT] for i in range(6)]
    params = {"max_tokens": 100, "ignore_eos": True}
    async with running(tiny) as roomy:
        wanted = [await tokens_of(roomy, request(p, **params)) for p in prompts]
    async with running(tiny, kv_cache_tokens=1024, max_context_tokens=512) as tight:
        asked = (tokens_of(tight, request(p, **params)) for p in prompts)
        assert await asyncio.gather(*asked) == wanted
        stats = tight.stats()
        assert stats.preemptions + stats.evictions > 0
        assert stats.blocks_used == 0


# -- adapters


async def test_a_version_loaded_while_another_writes_changes_nothing(
    tiny: Path, tmp_path: Path
) -> None:
    directory = make_adapter(tmp_path, "llama", r=4, seed=1)
    params = {"max_tokens": 200, "ignore_eos": True}
    async with running(tiny) as engine:
        wanted = await tokens_of(engine, request(PROMPT, salt="a", **params))
        task = asyncio.create_task(tokens_of(engine, request(PROMPT, salt="b", **params)))
        await until(lambda: engine.stats().generated_tokens > 205)
        await engine.load_adapter("v1", directory)
        await tokens_of(engine, request(PROMPT, "v1", max_tokens=5))
        await engine.drop_adapter("v1")
        assert not task.done()
        assert await task == wanted


async def test_an_adapter_of_another_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    async with running(tiny) as engine:
        with pytest.raises(AdapterInvalid):
            await engine.load_adapter("v1", make_adapter(tmp_path, "gpt2", r=4, seed=1))
        assert engine.stats().adapters == ()


# -- refusals


async def test_an_adapter_that_breaks_the_numbers_fails_its_reply_and_no_other(
    tiny: Path, tmp_path: Path
) -> None:
    directory = make_adapter(tmp_path / "broken", "llama", r=4, seed=1)
    file = directory / "adapter_model.safetensors"
    save_file({key: tensor * 1e30 for key, tensor in load_file(file).items()}, file)
    async with running(tiny) as engine:
        await engine.load_adapter("broken", directory)
        await engine.load_adapter("v1", make_adapter(tmp_path / "v1", "llama", r=4, seed=2))
        wanted = [await tokens_of(engine, request(PROMPT, n, "a", **LONG)) for n in (None, "v1")]
        good = [  # in the same steps as the broken one
            asyncio.create_task(tokens_of(engine, request(PROMPT, name, "b", **LONG)))
            for name in (None, "v1")
        ]
        with pytest.raises(ModelError, match="not finite"):
            await tokens_of(engine, request(PROMPT, "broken", **LONG))
        assert await asyncio.gather(*good) == wanted
        again = [await tokens_of(engine, request(PROMPT, n, "c", **LONG)) for n in (None, "v1")]
        assert again == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "FRONTDESK_DEVICE=cuda"),
        ({"prefill_chunk_tokens": 16}, "FRONTDESK_PREFILL_CHUNK_TOKENS=16"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(
    tiny: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        create_engine(tiny_settings(tiny, **changes))


# -- what is kept on disk


async def test_the_base_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "tiny")
    kept = tmp_path / "data" / "base"
    async with running(base) as engine:
        first = await tokens_of(engine, request(PROMPT, **LONG))
    (converted,) = (path for path in kept.iterdir() if path.is_dir())
    assert converted.name.startswith("-") is False
    before = (converted / "weights.safetensors").stat().st_mtime_ns
    async with running(base) as engine:
        assert await tokens_of(engine, request(PROMPT, **LONG)) == first
    assert (converted / "weights.safetensors").stat().st_mtime_ns == before
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.neg_()
    model.save_pretrained(base)
    async with running(base) as engine:
        assert await tokens_of(engine, request(PROMPT, **LONG)) != first
    assert len([path for path in kept.iterdir() if path.is_dir()]) == 2


async def test_a_damaged_conversion_is_named(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "tiny")
    async with running(base):
        pass
    (converted,) = (path for path in (tmp_path / "data" / "base").iterdir() if path.is_dir())
    (converted / "model.json").write_text("{}")
    engine = OpenVinoEngine(tiny_settings(base))
    with pytest.raises(BaseModelUnavailable, match=r"is damaged .* remove it"):
        await engine.start()
    await engine.close()


async def test_a_base_without_a_known_activation_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "tiny")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    engine = OpenVinoEngine(tiny_settings(base))
    with pytest.raises(BaseModelUnavailable, match="activation 'relu'"):
        await engine.start()
    await engine.close()
    assert not [path for path in (tmp_path / "data" / "base").iterdir() if path.is_dir()]


# -- what is left behind


async def test_random_requests_and_cancels_leave_nothing(tiny: Path) -> None:
    draw = random.Random(5)
    async with running(tiny, kv_cache_tokens=1024, max_running=8, max_waiting=400) as engine:
        room = asyncio.Semaphore(30)

        async def one(number: int) -> None:
            prompt = [*PROMPT[: draw.randrange(1, len(PROMPT))], number % 256]
            asked = request(prompt, max_tokens=draw.randrange(1, 8), ignore_eos=True)
            patience = draw.choice([0, 1, 3, 100])
            async with room, contextlib.aclosing(engine.submit(asked)) as stream:
                if patience == 1:
                    await engine.cancel(asked.request_id)
                async for _ in stream:
                    patience -= 1
                    if patience <= 0:
                        break

        await asyncio.gather(*(one(number) for number in range(300)))
        await until(lambda: engine.stats().running + engine.stats().waiting == 0, 60)
        await until(lambda: not engine._replies, 60)
        assert engine.stats().blocks_used == 0
        manager = engine._scheduler.blocks
        assert manager.empty + manager.cached == manager.total
        assert asyncio.all_tasks() == {asyncio.current_task()}
