"""A conversation in short: the problem, what was tried, what is open. Every line is a quotation:
nothing is put into words that nobody said. Pure.

The same rules as the desk's page has (widget/desk-summary.js): a test holds the two together.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chatbot.conversation.events import Event, LiveReply

WORDS = 4  # shorter first messages are greetings
TRIED = 3
MOST_CHARS = 160


@dataclass(frozen=True, slots=True)
class Summary:
    """``partial``: what the bot had begun when it was cut off. Empty where there is nothing."""

    problem: str
    tried: tuple[str, ...]
    open: tuple[str, ...]
    partial: str

    def to_wire(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def summary_of(events: Sequence[Event], live: LiveReply | None) -> Summary:
    messages = [event for event in events if event.type == "message.created"]
    asked = [event for event in messages if event.data["role"] == "visitor"]
    replies = [event for event in events if _is_reply(event) and event.data["text"].strip()]
    answered = max(
        (int(e.data.get("upto", e.offset)) for e in replies if "late" not in e.data), default=0
    )
    long = (e for e in asked if len(e.data["text"].split()) >= WORDS)
    problem = next(long, asked[0] if asked else None)
    cut = next((event for event in reversed(events) if _was_cut(event)), None)
    partial = live.text if live is not None else ""
    if not partial and cut is not None and cut.data["text"].strip():
        partial = str(cut.data["text"])
    whole = [event for event in replies if event.data.get("finish_reason") != "handoff"]
    return Summary(
        problem=_short(problem.data["text"]) if problem is not None else "",
        tried=tuple(_short(event.data["text"]) for event in whole[-TRIED:]),
        open=tuple(
            _short(event.data["text"])
            for event in asked
            if event.offset > answered and "late" not in event.data
        ),
        partial=partial,
    )


def _is_reply(event: Event) -> bool:
    by_agent = event.type == "message.created" and event.data["role"] == "agent"
    return by_agent or event.type == "reply.completed"


def _was_cut(event: Event) -> bool:
    handed_over = event.data.get("finish_reason") == "handoff"
    return event.type == "reply.failed" or (event.type == "reply.completed" and handed_over)


def _short(text: str) -> str:
    return f"{text[: MOST_CHARS - 3].rstrip()}…" if len(text) > MOST_CHARS else text
