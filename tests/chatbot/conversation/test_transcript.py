"""The log as chat messages."""

import itertools
from typing import Any

from chatbot.conversation.events import Event, EventType
from chatbot.conversation.transcript import conversation_messages


def _log(*entries: tuple[EventType, dict[str, Any]]) -> list[Event]:
    return [Event(offset, kind, offset, data) for offset, (kind, data) in enumerate(entries, 1)]


def _said(role: str, text: str) -> tuple[EventType, dict[str, Any]]:
    return "message.created", {"role": role, "text": text}


def _bot(text: str, upto: int, finish: str = "end") -> tuple[EventType, dict[str, Any]]:
    return "reply.completed", {"text": text, "upto": upto, "finish_reason": finish}


def _lines(events: list[Event], system: str = "") -> list[str]:
    return [f"{m['role']}: {m['content']}" for m in conversation_messages(events, system)]


def test_visitor_bot_and_agent() -> None:
    events = _log(
        _said("visitor", "hi"),
        _bot("hello", 1),
        ("status.changed", {"status": "human", "previous": "bot", "agent": "anna"}),
        ("note.created", {"text": "rude", "author": "anna"}),
        _said("visitor", "a person please"),
        _said("agent", "here I am"),
        ("rating.given", {"score": 5, "comment": "great"}),
        ("status.changed", {"status": "bot", "previous": "human", "agent": ""}),
        _said("visitor", "and now?"),
    )
    assert _lines(events, "Be kind.") == [
        "system: Be kind.",
        "user: hi",
        "assistant: hello",
        "user: a person please",
        "assistant: here I am",
        "user: and now?",
    ]


def test_no_system_message_when_there_is_no_prompt() -> None:
    assert _lines(_log(_said("visitor", "hi"))) == ["user: hi"]


def test_a_reply_stands_after_what_it_had_read() -> None:
    """The visitor wrote on while the first reply was being written."""
    events = _log(_said("visitor", "one"), _said("visitor", "two"), _bot("to one", 1))
    assert _lines(events) == ["user: one", "assistant: to one", "user: two"]


def test_what_was_shown_counts_and_nothing_else() -> None:
    events = _log(
        _said("visitor", "one"),
        _bot("half", 1, "stopped"),
        _said("visitor", "two"),
        _bot("cut", 3, "handoff"),
        _said("visitor", "three"),
        _bot("", 5, "handoff"),
        _bot("  ", 5, "stopped"),
        ("reply.failed", {"text": "taken back", "upto": 5, "reason": "refused"}),
    )
    assert _lines(events) == [
        "user: one",
        "assistant: half",
        "user: two",
        "assistant: cut",
        "user: three",
    ]


def test_a_conversation_is_a_prefix_of_itself_one_turn_later() -> None:
    events = _log(
        _said("visitor", "a"), _said("visitor", "b"), _bot("A", 1), _bot("B", 2),
        _said("visitor", "c"), _bot("C", 5), _said("visitor", "d"),
    )  # fmt: skip
    prompts = [_lines([e for e in events if e.offset <= upto], "s") for upto in (1, 3, 5, 7)]
    for earlier, later in itertools.pairwise(prompts):
        assert later[: len(earlier)] == earlier
