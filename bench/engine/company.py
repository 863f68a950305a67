"""The same request gives the same reply whatever company it has: computed alone with nothing in
the cache, and among others that share its beginning, with prompts in pieces and drafts. Greedy, and
drawn with a seed of its own.

On openvino, a prompt that repeats what a reply has just said is not promised to (it may find the
reply's keys and values in the cache, which another kernel has computed): such a one is counted, and
fails nothing."""

import argparse
import gc
from typing import Any

from bench.engine.opened import TUNED, Said, Turn, agent_turns, opened, prompt_of, say, say_all
from bench.engine.versions import until_merged
from chatbot.engine.interface import Engine, GenerationRequest, SamplingParams
from chatbot.worker.lessons import version_scope

TOKENS = 32  # of each reply, also beyond its end
PROMPTS = 32
AT_ONCE = 24
# small, so that prompts come in pieces and cached ones are pushed out
TIGHT = {"kv_cache_tokens": 4096, "prefill_chunk_tokens": 192, "max_running": 16}
KINDS: dict[str, dict[str, float]] = {
    "greedy": {},
    "drawn": {"temperature": 1.0},
    "nucleus": {"temperature": 0.7, "top_p": 0.9},
}


async def check(options: argparse.Namespace) -> dict[str, Any]:
    turns = agent_turns(options.data, 8 if options.quick else PROMPTS)
    settings = {**TIGHT, **options.settings}
    async with opened(options.runtime, options.version, **settings) as engine:
        adapter = TUNED if options.version is not None else None
        await until_merged(engine, {TUNED} if adapter else set())
        gc.collect()
        prompts = [prompt_of(engine, turn.messages) for turn in turns]
        found = {kind: await _compared(engine, prompts, kind, adapter) for kind in KINDS}
        stats = engine.stats()
    promised = set(range(len(turns)))
    if options.runtime == "openvino":
        promised -= {n for n, turn in enumerate(turns) if _goes_on(turn, turns)}
    return {
        "prompts": len(prompts),
        "promised": len(promised),
        **{kind: _counted(one, promised) for kind, one in found.items()},
        "preemptions": stats.preemptions,
        "cached_tokens": stats.prefill_tokens_cached,
        "accepted_drafts": sum(count.accepted for count in stats.drafts),
        "passed": all(one[n] is None for one in found.values() for n in promised),
    }


def _goes_on(turn: Turn, turns: list[Turn]) -> bool:
    """Whether its dialogue goes on from where another turn's reply was asked for."""
    before = (one.messages for one in turns if one is not turn)
    return any(turn.messages[: len(messages)] == messages for messages in before)


def _counted(places: list[int | None], promised: set[int]) -> dict[str, Any]:
    return {
        "same": sum(place is None for place in places),
        "same_of_promised": sum(places[n] is None for n in promised),
        "first_difference_at_token": [place for place in places if place is not None],
    }


async def _compared(
    engine: Engine, prompts: list[tuple[int, ...]], kind: str, adapter: str | None
) -> list[int | None]:
    """The place of the first token that differs, of each prompt."""

    def request(number: int, salted: bool) -> GenerationRequest:
        sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=number, **KINDS[kind])
        name = f"{kind}-{number}-{'alone' if salted else 'together'}"
        return GenerationRequest(
            name,
            prompts[number],
            sampling,
            adapter,
            cache_salt=name if salted else "",
            draft_scopes=() if salted else (version_scope(TUNED),),
        )

    numbers = range(len(prompts))
    alone = [await say(engine, request(number, salted=True)) for number in numbers]
    requests = [request(number, salted=False) for number in numbers]
    together = await say_all(engine, requests, AT_ONCE)
    return [_difference(*pair) for pair in zip(alone, together, strict=True)]


def _difference(one: Said, other: Said) -> int | None:
    pairs = enumerate(zip(one.tokens, other.tokens, strict=True))
    return next((place for place, (a, b) in pairs if a != b), None)
