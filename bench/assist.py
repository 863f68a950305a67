"""How good are the drafts? Three for each agent turn of held-out dialogues, after the conversation
as it really went: how often is the real reply among them, word for word (exact) or by its action
(the nearest template of ``star-responses.json``), template and custom turns apart; and how long
until the first.

    python -m bench.assist [--every N]                        retrieval alone: no model
    python -m bench.assist --data-dir D --version V         past replies and the version's model
    python -m bench.assist --data-dir D --version base      ... and the bare base model

Reads ``star-train.jsonl.gz`` (what is retrieved from) and ``star-val.jsonl.gz`` from
FRONTDESK_TEST_DATA, by default ../shared/data. The last line is JSON.
"""

import argparse
import asyncio
import difflib
import gzip
import json
import os
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot.assist.drafts import MOST, Draft, Written, rank
from chatbot.assist.retrieval import Match, ReplyIndex, examples_of, situation_of, vote
from chatbot.engine.interface import Chunk, Engine, GenerationRequest, SamplingParams
from chatbot.prompt import ChatMessage, encode_prompt
from chatbot.worker.assist import CANDIDATES

DATA = Path(os.environ.get("FRONTDESK_TEST_DATA", "../shared/data"))
REPLY_TOKENS = 96
TOGETHER = 8  # turns whose replies are written at once
KINDS = ("template", "custom")


@dataclass(frozen=True, slots=True)
class Turn:
    """An agent's turn of a held-out dialogue."""

    history: list[ChatMessage]
    reply: str
    kind: str
    task: str


@dataclass(frozen=True, slots=True)
class Drafted:
    turn: Turn
    drafts: list[Draft]
    seconds: float  # until the first draft
    own: str  # the model's reply; "" without a model


def read(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def turns_of(dialogues: list[dict[str, Any]]) -> list[Turn]:
    found = []
    for dialogue in dialogues:
        for agent in dialogue["meta"]["agent_turns"]:
            history = dialogue["messages"][: agent["i"]]
            reply = dialogue["messages"][agent["i"]]["content"].strip()
            if history and reply:
                found.append(Turn(history, reply, agent["kind"], agent["task"]))
    return found


class Actions:
    """The action of a reply: its task's template that is most like it."""

    def __init__(self, templates: dict[str, dict[str, str]]) -> None:
        self._templates = {
            task: {action: _plain(text) for action, text in own.items()}
            for task, own in templates.items()
        }
        self._known: dict[tuple[str, str], str | None] = {}

    def of(self, reply: str, task: str) -> str | None:
        key = (reply, task)
        if key not in self._known:
            text = _plain(reply)
            scored = [
                (difflib.SequenceMatcher(None, text, own, autojunk=False).ratio(), action)
                for action, own in self._templates.get(task, {}).items()
            ]
            self._known[key] = max(scored)[1] if scored else None
        return self._known[key]


def _plain(text: str) -> str:
    """Without slots and case: ``{balance:s}`` is not said by anybody."""
    return re.sub(r"\{[^}]*\}", "", text).lower()


class Model:
    """A version behind the engine's seam, as the worker uses it."""

    def __init__(self, engine: Engine, adapter: str | None) -> None:
        self._engine = engine
        self._adapter = adapter

    async def draft(self, turn: Turn, number: int) -> Written:
        ids = encode_prompt(
            turn.history, self._engine.tokenizer, self._engine.max_context - REPLY_TOKENS
        )
        params = SamplingParams(max_tokens=REPLY_TOKENS)
        request = GenerationRequest(f"t{number}", tuple(ids), params, self._adapter)
        text, last = "", Chunk("")
        async for last in self._engine.submit(request):
            text += last.text
        made = Draft("m0", text.strip(), "model", last.confidence or 0.0, self._adapter or "base")
        return Written(made, last.probability or 0.0)


async def draft_all(index: ReplyIndex, turns: Sequence[Turn], model: Model | None) -> list[Drafted]:
    slots = asyncio.Semaphore(TOGETHER)

    async def one(number: int, turn: Turn) -> Drafted:
        async with slots:
            began = time.perf_counter()
            matches: list[Match] = vote(index.nearest(situation_of(turn.history)))[:CANDIDATES]
            seconds = time.perf_counter() - began
            own = await model.draft(turn, number) if model else None
            return Drafted(turn, rank(own, matches), seconds, own.draft.text if own else "")

    return await asyncio.gather(*(one(number, turn) for number, turn in enumerate(turns)))


def measure(drafted: Sequence[Drafted], actions: Actions) -> dict[str, float | int]:
    def share(hits: list[bool]) -> float:
        return round(sum(hits) / len(hits), 4) if hits else 0.0

    def exact(item: Drafted, most: int) -> bool:
        return item.turn.reply in [draft.text for draft in item.drafts[:most]]

    def action(item: Drafted, most: int) -> bool:
        wanted = actions.of(item.turn.reply, item.turn.task)
        return wanted in [actions.of(draft.text, item.turn.task) for draft in item.drafts[:most]]

    found: dict[str, float | int] = {"turns": len(drafted)}
    for most in (1, MOST):
        found[f"exact@{most}"] = share([exact(item, most) for item in drafted])
        found[f"action@{most}"] = share([action(item, most) for item in drafted])
    found["model_exact@1"] = share([item.own == item.turn.reply for item in drafted])
    return found


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    index = ReplyIndex(
        example
        for number, dialogue in enumerate(read("star-train.jsonl.gz"))
        for example in examples_of(dialogue["messages"], f"train {number}")
    )
    built = time.perf_counter() - began
    turns = turns_of(read("star-val.jsonl.gz"))[:: arguments.every]
    print(f"{len(index)} past replies indexed in {built:.1f} s; {len(turns)} turns")
    if arguments.version:
        drafted = await _with_model(index, turns, arguments)
    else:
        drafted = await draft_all(index, turns, None)
    actions = Actions(json.loads((DATA / "star-responses.json").read_text(encoding="utf-8")))
    result: dict[str, Any] = {
        "bench": "assist",
        "version": arguments.version or "none",
        "every": arguments.every,
        "index_seconds": round(built, 1),
        "first_draft_ms_p50": round(1000 * statistics.median(d.seconds for d in drafted), 1),
    }
    for kind in KINDS:
        own = [item for item in drafted if item.turn.kind == kind]
        result[kind] = measure(own, actions)
        print(kind, result[kind])
    return result


async def _with_model(
    index: ReplyIndex, turns: Sequence[Turn], arguments: argparse.Namespace
) -> list[Drafted]:
    from chatbot.engine.factory import create_engine
    from chatbot.settings import load_settings

    engine = create_engine(load_settings(data_dir=arguments.data_dir))
    await engine.start()
    try:
        adapter = None
        if arguments.version != "base":
            adapter = arguments.version
            folder = arguments.data_dir / "artifacts" / "versions" / adapter / "adapter"
            await engine.load_adapter(adapter, folder)
        return await draft_all(index, turns, Model(engine, adapter))
    finally:
        await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--version", default="", help="a version's id, or base; empty: retrieval")
    parser.add_argument("--every", type=int, default=1, help="take every n-th turn only")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
