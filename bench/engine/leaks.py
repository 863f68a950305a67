"""A thousand random requests, many cancelled at random, leave no block, no task and no memory."""

import argparse
import asyncio
import contextlib
import gc
import random
import threading
from pathlib import Path
from typing import Any

from bench.engine.opened import TUNED, opened, prompt_of
from chatbot.engine.interface import Engine, GenerationRequest, SamplingParams
from chatbot.prompt import ChatMessage
from chatbot.settings import Settings

AT_ONCE = 40
WORDS = ("my", "order", "parcel", "card", "has", "not", "come", "please", "where", "is", "help")
MOST_GROWTH = 1.05
# all of the cache is touched by the first requests, so that it does not count as growth
SMALL = {"kv_cache_tokens": 4096, "max_running": 16, "max_waiting": 64}


async def one(engine: Engine, number: int, draw: random.Random, adapter: str | None) -> None:
    text = " ".join(draw.choices(WORDS, k=draw.randrange(1, 40)))
    system = ChatMessage(role="system", content=Settings().system_prompt)
    prompt = prompt_of(engine, [system, ChatMessage(role="user", content=text)])
    sampling = SamplingParams(
        max_tokens=draw.randrange(1, 12), temperature=draw.choice([0.0, 0.8]), seed=number
    )
    request = GenerationRequest(
        f"r{number}", prompt, sampling, draw.choice([None, adapter]), owner=f"o{number % 9}"
    )
    patience = draw.choice([0, 1, 2, 4, 100, 100])
    async with contextlib.aclosing(engine.submit(request)) as stream:
        if patience == 1:
            await engine.cancel(request.request_id)
        async for _ in stream:
            patience -= 1
            if patience <= 0:
                break


async def many(engine: Engine, count: int, seed: int, adapter: str | None) -> None:
    draw = random.Random(seed)
    room = asyncio.Semaphore(AT_ONCE)

    async def with_room(number: int) -> None:
        async with room:
            await one(engine, number, draw, adapter)

    await asyncio.gather(*(with_room(seed * 100_000 + number) for number in range(count)))
    async with asyncio.timeout(60):
        while engine.stats().running + engine.stats().waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def resident_megabytes() -> float:
    """Of this process, now; after what is garbage has gone."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def check(options: argparse.Namespace) -> dict[str, Any]:
    count = 100 if options.quick else 1000
    adapter = TUNED if options.version is not None else None
    async with opened(options.runtime, options.version, **SMALL) as engine:
        # as many before: kernels are kept for each shape of a step that came up
        await many(engine, count, 1, adapter)
        tasks, threads = len(asyncio.all_tasks()), threading.active_count()
        before = resident_megabytes()
        await many(engine, count, 2, adapter)
        after, stats = resident_megabytes(), engine.stats()
        left = {
            "blocks": stats.blocks_used,
            "tasks": len(asyncio.all_tasks()) - tasks,
            "threads": threading.active_count() - threads,
        }
    return {
        "requests": count,
        "left": left,
        "rss_mb_before": round(before),
        "rss_mb_after": round(after),
        "rss_ratio": round(after / before, 4),
        "passed": not any(left.values()) and after / before < MOST_GROWTH,
    }
