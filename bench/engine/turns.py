"""A conversation's sixth turn prefills its new tokens and at most a block more, and its first
token comes about as soon as that of the second."""

import argparse
import statistics
from typing import Any

from bench.engine.opened import TUNED, opened, say
from chatbot.engine.interface import GenerationRequest, SamplingParams
from chatbot.prompt import ChatMessage, encode_prompt, system_tokens
from chatbot.settings import Settings

TURNS = 6
TOKENS = 48
WORDS = "And what about the other order that I placed last week, number {} of {}?"
MOST_RATIO = 1.3


async def check(options: argparse.Namespace) -> dict[str, Any]:
    chats = 2 if options.quick else 12
    adapter = TUNED if options.version is not None else None
    firsts: list[list[float]] = [[] for _ in range(TURNS)]
    computed: list[list[int]] = [[] for _ in range(TURNS)]
    system = ChatMessage(role="system", content=Settings().system_prompt)
    async with opened(options.runtime, options.version) as engine:
        block = engine._scheduler.blocks.block_size  # type: ignore[attr-defined]
        for chat in range(chats):
            messages, known = [system], 0
            for turn in range(TURNS):
                # numbers of equal length: equal new text in each turn
                text = WORDS.format(f"{turn + 1}", f"{chat + 10}")
                messages.append(ChatMessage(role="user", content=text))
                ids = tuple(encode_prompt(messages, engine.tokenizer, 4000))
                request = GenerationRequest(
                    f"{chat} {turn}",
                    ids,
                    SamplingParams(max_tokens=TOKENS),
                    adapter,
                    shared_tokens=system_tokens(messages, engine.tokenizer),
                    owner=f"{chat}",
                )
                said = await say(engine, request)
                firsts[turn].append(said.first)
                # computed (prompt less cached) less what is new (prompt less what was known)
                computed[turn].append(known - said.cached)
                known = len(ids) + len(said.tokens)
                messages.append(ChatMessage(role="assistant", content=said.text))
    by_turn = [statistics.median(values) for values in firsts]
    ratio, beyond = by_turn[5] / by_turn[1], max(computed[5])
    return {
        "block": block,
        "ttft_ms_by_turn": [round(1000 * value, 1) for value in by_turn],
        "ttft_turn_6_over_turn_2": round(ratio, 3),
        "tokens_beyond_the_new_ones": beyond,
        "passed": beyond <= block and ratio <= MOST_RATIO,
    }
