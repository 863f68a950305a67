"""Drafts on the compiled graph: the same replies, in fewer steps; and turns from the cache."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino", reason="needs the extra: pip install 'frontdesk[openvino]'")

from chatbot.engine.interface import GenerationRequest, SamplingParams
from chatbot.engine.openvino.engine import OpenVinoEngine
from tests.chatbot.engine.helpers import EagerDrafts, collect, drafts, tokens_of
from tests.chatbot.engine_openvino.test_graph import make_adapter
from tests.chatbot.engine_openvino.tiny import running

TEXT = b"your order is on its way and we will send your order again when it is on its way "
PROMPTS = [[number, *TEXT, *TEXT[: 9 * number]] for number in range(8)]
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.7, top_p=0.9, seed=5)
FINED = SamplingParams(max_tokens=40, ignore_eos=True, repetition_penalty=1.3)


async def replies(engine: OpenVinoEngine, params: SamplingParams, tag: str) -> list[list[int]]:
    """All prompts at once, by turns with an adapter."""
    asked = [
        GenerationRequest(
            f"{tag} {n}",
            tuple(prompt),
            params,
            "v1" if n % 2 else None,
            cache_salt=tag,
            draft_scopes=("",),
        )
        for n, prompt in enumerate(PROMPTS)
    ]
    return list(await asyncio.gather(*(tokens_of(engine, one) for one in asked)))


async def test_replies_are_the_same_with_and_without_drafts(tiny: Path, tmp_path: Path) -> None:
    """Greedy, drawn with a seed, and penalised; drafts right and wrong; beside chunked prompts and
    adapters. Float32: see the decision record for bfloat16."""
    adapter = make_adapter(tmp_path, "llama", r=4, seed=1)
    kinds = {"greedy": GREEDY, "drawn": DRAWN, "fined": FINED}
    async with running(tiny, max_draft_tokens=0) as engine:
        await engine.load_adapter("v1", adapter)
        wanted = {name: await replies(engine, params, name) for name, params in kinds.items()}
    tight: dict[str, Any] = {"kv_cache_tokens": 1024, "prefill_chunk_tokens": 32}
    async with running(tiny, policy=EagerDrafts(), max_draft_tokens=5, **tight) as engine:
        await engine.load_adapter("v1", adapter)
        for name, params in kinds.items():
            for number, tokens in enumerate(wanted[name]):
                engine.teach("", tokens if number % 3 else [*tokens[:9], 1, 2, 3, 4], None)
            assert await replies(engine, params, name) == wanted[name], name
        drafted, accepted = drafts(engine)
        assert engine.stats().blocks_used == 0
    assert 100 < accepted < drafted


async def test_turn_six_prefills_its_new_tokens_and_less_than_a_block(tiny: Path) -> None:
    async with running(tiny, policy=EagerDrafts()) as engine:
        history = list(TEXT)
        for turn in range(1, 7):
            known = len(history)
            history += b"And then? " if turn > 1 else b""
            before = engine.stats().prefill_tokens_computed
            request = GenerationRequest(
                f"turn {turn}", tuple(history), GREEDY, owner="A", shared_tokens=20
            )
            chunks = await collect(engine, request)
            computed = engine.stats().prefill_tokens_computed - before
            if turn > 1:
                assert computed <= len(history) - known + 32
            history += [token for chunk in chunks for token in chunk.token_ids]
