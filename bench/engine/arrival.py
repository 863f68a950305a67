"""A prompt of 2,000 tokens arrives while others are being answered: how much their streams stutter.

The rule that governs it is the scheduler's: a step computes a token for every running reply, and
prompt tokens beside them only for as long as FRONTDESK_PREFILL_STRETCH allows."""

import argparse
import asyncio
import random
import time
from typing import Any

from bench.engine.opened import TUNED, Said, opened, percentile, say
from chatbot.engine.interface import Engine, GenerationRequest, SamplingParams

CHATS = 15  # running; the long prompt is the sixteenth
LONG = 2000
MOST_STRETCH = 2.5
QUIET_SECONDS = 4.0


def prompt(seed: int, length: int, vocabulary: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(100, vocabulary) for _ in range(length))


async def check(options: argparse.Namespace) -> dict[str, Any]:
    rounds = 2 if options.quick else 6
    adapter = TUNED if options.version is not None else None
    # without drafts the steps are shortest, and the rule is hardest to keep
    settings = {"max_draft_tokens": "0", **options.settings}
    async with opened(options.runtime, options.version, **settings) as engine:
        size = len(engine.tokenizer) - 100
        await say(engine, _request("warm", prompt(99, LONG, size), adapter, 4))
        running = [
            asyncio.create_task(_watched(engine, n, prompt(n, 150, size), adapter))
            for n in range(CHATS)
        ]
        await asyncio.sleep(3.0)  # all prompts are in
        times: list[tuple[float, float]] = []
        quiet: list[tuple[float, float]] = []
        for number in range(rounds):
            began = time.perf_counter()
            await asyncio.sleep(QUIET_SECONDS)
            quiet.append((began, time.perf_counter()))
            long = await say(
                engine, _request(f"long{number}", prompt(1000 + number, LONG, size), adapter, 1)
            )
            times.append((long.asked, long.times[0]))
        for task in running:
            task.cancel()
        said = [_partial[n] for n in range(CHATS)]
        await asyncio.gather(*running, return_exceptions=True)
    without, within = _gaps(said, quiet), _gaps(said, times)
    # each gap by the usual one of its time: replies that grow get slower meanwhile
    stretched = [
        gap / percentile(_gaps(said, [before]), 50)
        for before, during in zip(quiet, times, strict=True)
        for gap in _gaps(said, [during])
    ]
    stretch = percentile(stretched, 99)
    return {
        "chats": CHATS,
        "long_prompt_tokens": LONG,
        "itl_p50_ms_without": round(1000 * percentile(without, 50), 1),
        "itl_p99_ms_without": round(1000 * percentile(without, 99), 1),
        "itl_p50_ms_meanwhile": round(1000 * percentile(within, 50), 1),
        "itl_p99_ms_meanwhile": round(1000 * percentile(within, 99), 1),
        "stretch": round(stretch, 2),
        "long_ttft_ms": round(1000 * percentile([e - b for b, e in times], 50)),
        "passed": stretch < MOST_STRETCH,
    }


def _request(
    name: str, ids: tuple[int, ...], adapter: str | None, tokens: int
) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return GenerationRequest(name, ids, sampling, adapter)


_partial: dict[int, Said] = {}


async def _watched(engine: Engine, number: int, ids: tuple[int, ...], adapter: str | None) -> None:
    """A reply that outlasts the measurement; what has come so far can be read."""
    said = _partial[number] = Said(time.perf_counter())
    async for _ in engine.submit(_request(f"chat{number}", ids, adapter, 3000)):
        said.times.append(time.perf_counter())


def _gaps(said: list[Said], spans: list[tuple[float, float]]) -> list[float]:
    """Gaps that end within one of the spans."""
    return [
        later - before
        for one in said
        for before, later in zip(one.times, one.times[1:], strict=False)
        if any(began < later <= ended for began, ended in spans)
    ]
