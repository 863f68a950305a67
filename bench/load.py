"""Drives one OpenAI-compatible server with chats and measures what their visitors see.

    python -m bench.load URL MODEL --key KEY --data star-val.jsonl.gz --chats 16 --turns 6

A process of its own, so that measuring takes nothing from the server's process. Each chat is a
real visitor's turns from a held-out transcript; the replies between them are the server's own, and
the next turn is sent when the reply has ended (closed loop). ``--arrivals R`` lets chats begin at
random, R a second (Poisson), instead of all at once. ``--label`` opens the system prompt, so that a
run finds nothing in a cache that an earlier one left there. The last line is JSON.
"""

import argparse
import asyncio
import gzip
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.http_reader import post

SYSTEM = (
    "You are a friendly customer service assistant. Be short and precise. Answer questions about "
    "orders, bookings, appointments and bank accounts. Ask for what you need to know, one thing at "
    "a time, and never invent an order number, a price or a date. If you cannot help, say so, and "
    "offer to pass the visitor on to a colleague. Be polite also where the visitor is not."
)
TIMEOUT = 600.0  # seconds for one reply
Messages = list[dict[str, str]]


@dataclass(slots=True)
class Turn:
    """One reply. Times are seconds; ``gaps`` are between pieces of text that arrived."""

    first_text: float
    gaps: list[float]
    tokens: int
    prompt_tokens: int
    cached_tokens: int | None  # None: the engine does not tell
    text: str


Ask = Callable[[Messages], Awaitable[Turn]]  # raises RuntimeError: refused, or broken off


@dataclass(slots=True)
class Result:
    """All chats of a run: ``turns[n]`` has the n-th reply of each."""

    turns: list[list[Turn]]
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


def visitors(data: Path, chats: int, turns: int) -> list[list[str]]:
    """What each chat's visitor says: the user turns of real dialogues with enough of them."""
    opener = gzip.open if data.suffix == ".gz" else open
    found: list[list[str]] = []
    with opener(data, "rt", encoding="utf-8") as lines:
        for line in lines:
            said = [m["content"] for m in json.loads(line)["messages"] if m["role"] == "user"]
            if len(said) >= turns:
                found.append(said[:turns])
    if not found:
        raise SystemExit(f"{data}: no dialogue has {turns} turns of a visitor")
    return [found[n % len(found)] for n in range(chats)]


async def ask(spec: argparse.Namespace, messages: Messages) -> Turn:
    """One reply, streamed. Raises RuntimeError: the server refused, or broke off."""
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": spec.tokens or spec.longest,
    }
    if spec.tokens:
        body["ignore_eos"] = True
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _read(spec, body)
    except (OSError, EOFError, ValueError) as error:
        raise RuntimeError(str(error) or repr(error)) from error


async def _read(spec: argparse.Namespace, body: dict[str, Any]) -> Turn:
    began = time.perf_counter()
    times: list[float] = []
    text, usage, rest = "", None, b""
    async with post(f"{spec.url.rstrip('/')}/chat/completions", spec.key, body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {(await answer.whole())[:300]!r}")
        async for raw in answer.pieces():
            now = time.perf_counter()
            *events, rest = (rest + raw).split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: ") or event == b"data: [DONE]":
                    continue
                chunk = json.loads(event[6:])
                if "error" in chunk:
                    raise RuntimeError(str(chunk["error"]))
                usage = chunk.get("usage") or usage
                piece = "".join(c["delta"].get("content") or "" for c in chunk["choices"])
                if piece:
                    text += piece
                    times.append(now)
    if usage is None:
        raise RuntimeError("the stream ended without its usage")
    details = usage.get("prompt_tokens_details") or {}
    return Turn(
        first_text=(times[0] if times else time.perf_counter()) - began,
        gaps=[later - before for before, later in pairwise(times)],
        tokens=usage["completion_tokens"],
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=details.get("cached_tokens"),
        text=text,
    )


async def chat(ask: Ask, system: str, said: list[str], start: float, result: Result) -> None:
    await asyncio.sleep(start)
    messages: Messages = [{"role": "system", "content": system}]
    for number, words in enumerate(said):
        messages.append({"role": "user", "content": words})
        try:
            turn = await ask(messages)
        except RuntimeError as error:
            result.errors.append(str(error) or repr(error))
            return
        result.turns[number].append(turn)
        messages.append({"role": "assistant", "content": turn.text})


async def run(spec: argparse.Namespace, ask_by: Ask | None = None) -> Result:
    """All chats, to their ends. ``ask_by``: how a reply is had; over HTTP where it is left out."""
    result = Result([[] for _ in range(spec.turns)])
    draw = random.Random(0)
    start, starts = 0.0, []
    for _ in range(spec.chats):
        starts.append(start)
        start += draw.expovariate(spec.arrivals) if spec.arrivals else 0.0
    said = visitors(spec.data, spec.chats, spec.turns)
    system = f"{spec.label} {SYSTEM}".strip()
    began = time.perf_counter()
    await asyncio.gather(
        *(
            chat(ask_by or partial(ask, spec), system, words, when, result)
            for words, when in zip(said, starts, strict=True)
        )
    )
    result.seconds = time.perf_counter() - began
    return result


def summary(result: Result) -> dict[str, Any]:
    """The numbers of a run. Times are ms; lists are by turn."""
    turns = [turn for one in result.turns for turn in one]
    gaps = [gap for turn in turns for gap in turn.gaps]
    prompt = sum(turn.prompt_tokens for turn in turns)
    cached = [turn.cached_tokens for turn in turns if turn.cached_tokens is not None]
    tells = bool(turns) and len(cached) == len(turns)
    return {
        "tokens_per_s": round(sum(turn.tokens for turn in turns) / result.seconds, 1),
        "replies_per_s": round(len(turns) / result.seconds, 3),
        "ttft_p50_ms": [_ms([turn.first_text for turn in one], 50) for one in result.turns],
        "ttft_p95_ms": [_ms([turn.first_text for turn in one], 95) for one in result.turns],
        "itl_p50_ms": _ms(gaps, 50),
        "itl_p95_ms": _ms(gaps, 95),
        "itl_p99_ms": _ms(gaps, 99),
        "replies": len(turns),
        "reply_tokens": sum(turn.tokens for turn in turns),
        "cached_share": round(sum(cached) / prompt, 3) if tells else None,
        "computed_tokens_by_turn": [
            round(statistics.mean(t.prompt_tokens - (t.cached_tokens or 0) for t in one), 1)
            if one and tells
            else None
            for one in result.turns
        ],
        "errors": len(result.errors),
        "first_error": result.errors[0] if result.errors else None,
        "seconds": round(result.seconds, 2),
    }


def _ms(values: Sequence[float], percent: int) -> float | None:
    """The percentile in ms, by the nearest rank; None without values."""
    if not values:
        return None
    ranked = sorted(values)
    return round(1000 * ranked[max(0, -(-len(ranked) * percent // 100) - 1)], 1)


def add_load_options(parser: argparse.ArgumentParser, needs_data: bool = True) -> None:
    """What a run is, whoever is asked."""
    parser.add_argument("--data", type=Path, required=needs_data)
    parser.add_argument("--chats", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=0, help="of each reply; 0: natural ends")
    parser.add_argument("--longest", type=int, default=128, help="of replies that end naturally")
    parser.add_argument("--arrivals", type=float, default=0.0, help="chats a second; 0: at once")
    parser.add_argument("--label", default="", help="opens the system prompt")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("url", help="as http://127.0.0.1:8080/v1")
    parser.add_argument("model")
    parser.add_argument("--key", default="none")
    add_load_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    print(json.dumps(summary(asyncio.run(run(parse(arguments))))))


if __name__ == "__main__":
    main()
