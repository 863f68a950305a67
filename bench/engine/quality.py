"""What int8 costs: perplexity of the openvino runtime beside bfloat16's, and how many greedy
replies to real visitors are the same, or equal the agent's own words as often."""

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from bench.engine.opened import TUNED, agent_turns, opened, prompt_of, say_all
from bench.perplexity import our_scorer
from bench.product import CACHE
from bench.texts import perplexity, read_texts, write_texts
from chatbot.base_models import base_directory, load_tokenizer
from chatbot.engine.interface import GenerationRequest, SamplingParams
from chatbot.manifest import ADAPTER

TOKENS = 96
MOST_PERPLEXITY = 1.01
LEAST_SAME = 0.97


async def check(options: argparse.Namespace) -> dict[str, Any]:
    count, texts = (10, 3) if options.quick else (200, 40)
    turns = agent_turns(options.data, count, in_one=3)
    replies = {}
    for runtime in ("torch", "openvino"):
        replies[runtime] = await _replies(runtime, options.version, turns)
    scores = await asyncio.to_thread(_scores, options, texts)
    same = sum(a == b for a, b in zip(*replies.values(), strict=True))
    golden = [turn.gold.strip() for turn in turns]
    gold = {
        runtime: sum(text.strip() == words for text, words in zip(found, golden, strict=True))
        for runtime, found in replies.items()
    }
    ratio = scores["openvino"] / scores["torch"]
    as_often = gold["openvino"] >= gold["torch"]
    return {
        "perplexity": {name: round(value, 4) for name, value in scores.items()},
        "perplexity_ratio": round(ratio, 4),
        "replies": len(turns),
        "same": same,
        "equal_to_gold": gold,
        "passed": ratio <= MOST_PERPLEXITY and (same >= LEAST_SAME * len(turns) or as_often),
    }


def _scores(options: argparse.Namespace, count: int) -> dict[str, float]:
    adapter = options.version / ADAPTER if options.version else None
    tokenizer = load_tokenizer(base_directory("smollm2-135m", CACHE))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        write_texts(options.data, tokenizer, count, path)
        texts = read_texts(path)
    return {
        runtime: perplexity(texts, our_scorer(runtime, str(CACHE), adapter))
        for runtime in ("torch", "openvino")
    }


async def _replies(runtime: str, version: Path | None, turns: list[Any]) -> list[str]:
    async with opened(runtime, version, dtype="auto", max_draft_tokens=0) as engine:
        sampling = SamplingParams(max_tokens=TOKENS)
        adapter = TUNED if version is not None else None
        requests = [
            GenerationRequest(f"r{n}", prompt_of(engine, turn.messages), sampling, adapter)
            for n, turn in enumerate(turns)
        ]
        return [said.text for said in await say_all(engine, requests, 16)]
