"""What past agents did next when a call stood like this one: looked something up, asked something,
said something after their answer. Counted over the nearest past moments, never written. Pure.

Votes are those of :func:`chatbot.assist.retrieval.vote`: likeness to the power ``SHARPNESS``, of
the ``NEIGHBOURS`` nearest moments. A share is part of all votes, so the shares of different kinds
do not add up to one: an agent looks something up *and* asks.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from chatbot.assist.retrieval import NEIGHBOURS, SHARPNESS, Example

HintKind = Literal["look_up", "ask", "then"]
MOST = 4
LEAST_SHARE = 0.1  # what fewer did is no advice
MOST_CHARS = 300


@dataclass(frozen=True, slots=True)
class Hint:
    """``look_up``: a tool that was used before the answer; ``ask``: a question that was the answer;
    ``then``: what was said next, after the answer. ``share`` of the votes, 0..1; ``origin``: where
    the nearest such moment was."""

    kind: HintKind
    text: str
    share: float
    origin: str

    def to_wire(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "text": self.text,
            "share": round(self.share, 3),
            "origin": self.origin,
        }


def hints_of(neighbours: Iterable[tuple[float, Example]], most: int = MOST) -> list[Hint]:
    """The steps that most past agents took, those with the most votes first."""
    nearest = sorted(neighbours, key=lambda item: item[0], reverse=True)[:NEIGHBOURS]
    votes: dict[tuple[HintKind, str], float] = {}
    origins: dict[tuple[HintKind, str], str] = {}
    whole = 0.0
    for like, example in nearest:
        weight = like**SHARPNESS
        whole += weight
        for step in _steps(example):
            votes[step] = votes.get(step, 0.0) + weight
            origins.setdefault(step, example.source)
    found = [
        Hint(kind, text[:MOST_CHARS], vote / whole, origins[kind, text])
        for (kind, text), vote in votes.items()
        if vote / whole >= LEAST_SHARE
    ]
    return sorted(found, key=lambda hint: hint.share, reverse=True)[:most]


def _steps(example: Example) -> set[tuple[HintKind, str]]:
    steps: set[tuple[HintKind, str]] = {
        ("look_up", name) for name in _tools(example.situation.tool)
    }
    if example.reply.rstrip().endswith("?"):
        steps.add(("ask", example.reply))
    if example.after:
        steps.add(("then", example.after))
    return steps


def _tools(text: str) -> set[str]:
    """Names of the tools whose results a situation holds: one JSON object a line, as transcripts
    have them (``api``), or as OpenAI's tool messages (``name``). Other lines name no tool."""
    found = set()
    for line in text.splitlines():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        name = (result.get("api") or result.get("name")) if isinstance(result, dict) else None
        if isinstance(name, str):
            found.add(name)
    return found
