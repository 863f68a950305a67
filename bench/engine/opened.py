"""A started engine on the real model, what it is asked, and what it said."""

import asyncio
import gzip
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.product import CACHE
from chatbot.engine.factory import create_engine
from chatbot.engine.interface import Engine, GenerationRequest
from chatbot.manifest import ADAPTER
from chatbot.prompt import ChatMessage, encode_prompt
from chatbot.settings import Settings
from chatbot.worker.lessons import version_scope

TUNED = "version"
MOST_PROMPT_TOKENS = 1024


@asynccontextmanager
async def opened(runtime: str, version: Path | None, **settings: Any) -> AsyncIterator[Engine]:
    """An engine with the version's adapter loaded as ``TUNED``, and its replies to draft from."""
    engine = create_engine(Settings(engine=runtime, data_dir=CACHE, device="cpu", **settings))
    await engine.start()
    try:
        if version is not None:
            await engine.load_adapter(TUNED, version / ADAPTER)
            replies = version / "replies.json"
            for text in json.loads(replies.read_text()) if replies.exists() else []:
                ids = engine.tokenizer.encode(text, add_special_tokens=False)
                engine.teach(version_scope(TUNED), ids, None)
        yield engine
    finally:
        await engine.close()


@dataclass(slots=True)
class Said:
    """A reply: ``times`` are seconds at which its chunks came, from ``asked`` on."""

    asked: float
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    cached: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first chunk."""
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [later - before for before, later in zip(self.times, self.times[1:], strict=False)]


async def say(engine: Engine, request: GenerationRequest) -> Said:
    said = Said(time.perf_counter())
    async for chunk in engine.submit(request):
        said.times.append(time.perf_counter())
        said.text += chunk.text
        said.tokens += chunk.token_ids
        if chunk.usage is not None:
            said.cached = chunk.usage.cached_tokens
    return said


async def say_all(engine: Engine, requests: Sequence[GenerationRequest], most: int) -> list[Said]:
    """At most ``most`` of them at once, begun in order."""
    room = asyncio.Semaphore(most)

    async def one(request: GenerationRequest) -> Said:
        async with room:
            return await say(engine, request)

    return list(await asyncio.gather(*(one(request) for request in requests)))


@dataclass(frozen=True, slots=True)
class Turn:
    """A place in a real dialogue where the agent speaks: what was said before it, and his words."""

    messages: list[ChatMessage]
    gold: str


def agent_turns(data: Path, count: int, seed: int = 0, in_one: int = 2) -> list[Turn]:
    """``count`` turns, ``in_one`` from each of the first dialogues, so that some prompts are
    beginnings of others; those of one dialogue side by side."""
    draw = random.Random(seed)
    found: list[Turn] = []
    for messages in dialogues(data):
        places = [n for n, m in enumerate(messages) if m["role"] == "assistant" and n > 0]
        for place in sorted(draw.sample(places, min(in_one, len(places)))):
            found.append(Turn(messages[:place], messages[place]["content"]))
        if len(found) >= count:
            break
    return found[:count]


def dialogues(data: Path) -> list[list[ChatMessage]]:
    opener = gzip.open if data.suffix == ".gz" else open
    with opener(data, "rt", encoding="utf-8") as lines:
        return [
            [
                ChatMessage(role=m["role"], content=m["content"])
                for m in json.loads(line)["messages"]
            ]
            for line in lines
        ]


def prompt_of(engine: Engine, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
    return tuple(encode_prompt(messages, engine.tokenizer, MOST_PROMPT_TOKENS))


def percentile(values: Sequence[float], percent: int) -> float:
    """By the nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100) - 1)]
