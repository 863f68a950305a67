"""Greedy output equals transformers' generate, token by token, whatever else happens."""

import asyncio
import copy
import random
from typing import Any

import pytest
import torch
from transformers import BertConfig, MistralConfig

from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.models import Linear, LoraSegments, rounded
from chatbot.errors import BaseModelUnavailable, SettingsError
from tests.chatbot.engine.helpers import (
    CONFIGS,
    END,
    generate,
    request,
    running,
    tiny_model,
    tokens_of,
)

LENGTHS = (5, 16, 33, 100, 1, 64)


def prompts(seed: int = 1) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(256) for _ in range(length)] for length in LENGTHS]


@pytest.mark.parametrize("name", CONFIGS)
async def test_engine_equals_generate(name: str) -> None:
    """Several prompts at once, prefilled in chunks of 32; the second round hits the cache."""
    model = tiny_model(name)
    wanted = [generate(model, prompt, 24) for prompt in prompts()]
    assert len({token for tokens in wanted for token in tokens}) > 10  # not one token for ever
    async with running(model, prefill_chunk_tokens=32) as engine:
        for _ in range(2):
            asked = [request(p, max_tokens=24, ignore_eos=True) for p in prompts()]
            assert await asyncio.gather(*(tokens_of(engine, r) for r in asked)) == wanted
        # all but one of the 33, 100 and 64 tokens
        assert engine.stats().prefill_tokens_cached == 32 + 99 + 63


@pytest.mark.parametrize("name", ["llama", "gpt2"])
async def test_engine_equals_generate_when_preempted(name: str) -> None:
    model = tiny_model(name)
    wanted = [generate(model, prompt, 90) for prompt in prompts()]
    async with running(model, kv_cache_tokens=1024, prefill_chunk_tokens=64) as engine:
        ballast = request([1] * 200, max_tokens=300, ignore_eos=True)
        asked = [request(p, max_tokens=90, ignore_eos=True) for p in prompts()]
        results = await asyncio.gather(*(tokens_of(engine, r) for r in [ballast, *asked]))
        assert results[1:] == wanted
        stats = engine.stats()
        assert stats.preemptions > 0
        assert stats.blocks_used == 0


async def test_repetition_penalty_equals_generate() -> None:
    model = tiny_model()
    wanted = [generate(model, prompt, 24, repetition_penalty=1.7) for prompt in prompts()]
    assert wanted != [generate(model, prompt, 24) for prompt in prompts()]
    async with running(model) as engine:
        asked = [
            request(p, max_tokens=24, ignore_eos=True, repetition_penalty=1.7) for p in prompts()
        ]
        assert await asyncio.gather(*(tokens_of(engine, r) for r in asked)) == wanted


async def test_generation_ends_at_each_of_the_end_tokens() -> None:
    model = tiny_model()
    free = generate(model, [1, 2, 3], 20)
    for ends in ([free[4]], [250, free[7]]):
        changed = copy.deepcopy(model)
        changed.generation_config.eos_token_id = ends
        wanted = generate(changed, [1, 2, 3], 20)
        assert wanted[-1] in ends
        async with running(changed) as engine:
            assert await tokens_of(engine, request([1, 2, 3], max_tokens=20)) == wanted


async def test_the_tokenizer_s_end_token_ends_a_reply_too() -> None:
    async with running(tiny_model()) as engine:
        assert END in engine._decoder.end_ids


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
    return out


@pytest.mark.parametrize("name", CONFIGS)
async def test_logits_agree_in_one_chunk_and_in_many(name: str) -> None:
    """Attention in chunks (mask over the past) and in one piece (plainly causal) agree."""
    from chatbot.engine.torch.blocks import BlockManager
    from chatbot.engine.torch.runner import TorchRunner
    from chatbot.engine.torch.scheduler import Scheduler
    from chatbot.engine.torch.sequence import Sequence

    model, tokens = tiny_model(name), prompts()[3]
    wanted = logits_of(model, tokens)
    runner = TorchRunner(build_decoder(copy.deepcopy(model), 512, frozenset()), 32, 16)
    for chunk in (128, 16):
        scheduler = Scheduler(
            BlockManager(32), max_running=1, max_waiting=1, prefill_chunk_tokens=chunk
        )
        scheduler.add(Sequence("r", tuple(tokens), max_tokens=1))
        while True:
            step = scheduler.schedule()
            with torch.inference_mode():
                logits = runner.decoder.forward(runner.build(list(step.works)), runner.cache)
            if step.sampling:
                break
            scheduler.commit(step, [])
        torch.testing.assert_close(logits[0], wanted, atol=2e-4, rtol=2e-4)


def test_numbers_of_rows_are_few_and_never_too_small() -> None:
    found = [rounded(rows, torch.float32) for rows in range(513)]
    assert found[:10] == [0, 1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert len(set(found)) < 70
    assert all(rows <= many < 2 * rows + 8 for rows, many in enumerate(found) if rows)
    assert [rounded(rows, torch.bfloat16) for rows in range(513)] == [0, 2, *found[2:]]


async def test_linear_layers_see_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    plain = Linear.__call__

    def noting(linear: Linear, x: torch.Tensor, segments: LoraSegments) -> torch.Tensor:
        seen.add(x.shape[0])
        return plain(linear, x, segments)

    monkeypatch.setattr(Linear, "__call__", noting)
    async with running(tiny_model(), prefill_chunk_tokens=32) as engine:
        lengths = range(1, 40)
        asked = [request([1 + n % 200 for n in range(size)], max_tokens=3) for size in lengths]
        await asyncio.gather(*(tokens_of(engine, one) for one in asked))
    assert seen
    assert {rounded(rows, torch.float32) for rows in seen} == seen


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    from transformers import BertLMHeadModel

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, is_decoder=True
    )
    with pytest.raises(BaseModelUnavailable, match=r"'bert'.*gpt2, llama, mistral, qwen2, qwen3"):
        build_decoder(BertLMHeadModel(config), 64, frozenset())


def test_a_rotary_embedding_that_changes_with_the_length_is_refused() -> None:
    model = tiny_model()
    model.config.rope_parameters = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 2.0,
    }
    with pytest.raises(BaseModelUnavailable, match="dynamic"):
        build_decoder(model, 64, frozenset())


async def test_a_sliding_window_is_refused_only_where_it_would_slide() -> None:
    model = tiny_model("mistral")
    model.config.sliding_window = 128
    assert isinstance(model.config, MistralConfig)
    with pytest.raises(SettingsError, match="FRONTDESK_MAX_CONTEXT_TOKENS to at most 128"):
        async with running(model, max_context_tokens=512):
            pass
    wanted = generate(model, prompts()[3], 20)
    async with running(model, max_context_tokens=128) as engine:
        asked = request(prompts()[3], max_tokens=20, ignore_eos=True)
        assert await tokens_of(engine, asked) == wanted
