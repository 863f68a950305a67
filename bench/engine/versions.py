"""A version is loaded, merged and removed while others' replies run: what the replies notice.

Their tokens must be the same as without it, and no gap longer than usual by more than 100 ms."""

import argparse
import asyncio
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.engine.identity import make_adapter
from bench.engine.opened import TUNED, Said, agent_turns, opened, percentile, prompt_of, say
from bench.product import CACHE
from chatbot.base_models import BUILT_IN, load_base
from chatbot.engine.interface import Engine, GenerationRequest, SamplingParams

TOKENS = {1: 1500, 8: 500}  # of a reply, by chats beside each other: enough to outlast a merge
MOST_STALL = 0.1  # seconds beyond the usual gap
EVENTS = ("loaded", "merged", "removed")
PATIENCE = 120.0


async def check(options: argparse.Namespace) -> dict[str, Any]:
    adapter = TUNED if options.version is not None else None
    turns = agent_turns(options.data, max(TOKENS))
    settings = {"max_draft_tokens": "0", **options.settings}  # each step is one token's gap
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "random-8"
        model, _ = load_base(BUILT_IN, CACHE, torch.float32)
        await asyncio.to_thread(make_adapter, model, 8, other)
        del model
        async with opened(options.runtime, options.version, **settings) as engine:
            await until_merged(engine, {TUNED} if adapter else set())
            gc.collect()
            gc.freeze()  # as a worker does
            prompts = [prompt_of(engine, turn.messages) for turn in turns]
            found = {
                str(chats): await _beside(engine, prompts[:chats], tokens, adapter, other)
                for chats, tokens in TOKENS.items()
            }
    return {
        "chats": found,
        "passed": all(
            one["same"]
            and one["still_running"] == int(chats)
            and max(one["stall_ms"].values()) <= 1000 * MOST_STALL
            for chats, one in found.items()
        ),
    }


async def _beside(
    engine: Engine,
    prompts: list[tuple[int, ...]],
    tokens: int,
    adapter: str | None,
    other: Path,
) -> dict[str, Any]:
    moments: dict[str, float] = {}
    numbered = list(enumerate(prompts))
    replies = [
        asyncio.create_task(say(engine, _request(f"r{n}", prompt, adapter, tokens)))
        for n, prompt in numbered
    ]
    await asyncio.sleep(2.0)
    began = time.perf_counter()
    await engine.load_adapter("other", other)
    moments["loaded"] = time.perf_counter()
    await until_merged(engine, {"other"} | ({adapter} if adapter else set()))
    moments["merged"] = time.perf_counter()
    await engine.drop_adapter("other")
    moments["removed"] = time.perf_counter() + 0.5  # memory is given back
    running = sum(not reply.done() for reply in replies)
    said = await asyncio.gather(*replies)
    asked = (say(engine, _request(f"alone{n}", prompt, adapter, tokens)) for n, prompt in numbered)
    alone = await asyncio.gather(*asked)
    usual = percentile(_gaps(alone, 0.0, float("inf")), 50)
    stalls = {}
    for event in EVENTS:
        longest = max(_gaps(said, began, moments[event]), default=float("nan"))
        stalls[event] = round(1000 * (longest - usual), 1)
        began = moments[event]
    return {
        "same": [one.tokens for one in said] == [one.tokens for one in alone],
        "still_running": running,
        "usual_gap_ms": round(1000 * usual, 1),
        "longest_gap_ms_alone": round(1000 * max(_gaps(alone, 0.0, float("inf"))), 1),
        "merging_seconds": round(moments["merged"] - moments["loaded"], 1),
        "stall_ms": stalls,
    }


def _request(
    name: str, ids: tuple[int, ...], adapter: str | None, tokens: int
) -> GenerationRequest:
    return GenerationRequest(
        name, ids, SamplingParams(max_tokens=tokens, ignore_eos=True), adapter, cache_salt=name
    )


def _gaps(said: list[Said], began: float, ended: float) -> list[float]:
    """Gaps of which a part lies between the two moments."""
    return [
        later - before
        for one in said
        for before, later in zip(one.times, one.times[1:], strict=False)
        if later > began and before < ended
    ]


async def until_merged(engine: Any, names: set[str]) -> None:
    merger = engine._merger
    async with asyncio.timeout(PATIENCE):
        while merger._most and set(merger.merged) != names:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
