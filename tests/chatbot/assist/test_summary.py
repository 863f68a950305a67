"""In short: quotations only."""

from typing import Any

from chatbot.assist.summary import summary_of
from chatbot.conversation.events import Event, LiveReply, ReplyId


def log(*said: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(n, kind, n, data) for n, (kind, data) in enumerate(said, 1)]  # type: ignore[arg-type]


def visitor(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "message.created", {"role": "visitor", "text": text, **more}


def agent(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "message.created", {"role": "agent", "text": text, **more}


def test_a_greeting_is_not_the_problem_and_what_nobody_answered_is_open() -> None:
    events = log(
        visitor("hi there"),
        visitor("my parcel did not come " + "very " * 60),
        agent("Which order is it?"),
        visitor("seven"),
        visitor("what about the other", late=3),
    )
    short = summary_of(events, None)
    assert short.problem.startswith("my parcel did not come")
    assert short.problem.endswith("…")
    assert len(short.problem) <= 160
    assert short.tried == ("Which order is it?",)
    assert short.open == ("seven",)  # the late one was answered before it came
    assert short.partial == ""


def test_what_the_bot_had_begun_is_told_apart_from_answers() -> None:
    cut = ("reply.completed", {"text": "Your parc", "finish_reason": "handoff", "upto": 1})
    short = summary_of(log(visitor("where"), cut), None)
    assert (short.tried, short.partial) == ((), "Your parc")
    live = LiveReply(ReplyId("r"), "v1", "It is")
    assert summary_of(log(visitor("where"), cut), live).partial == "It is"


def test_nothing_said_is_nothing_told() -> None:
    assert summary_of([], None).to_wire() == {
        "problem": "",
        "tried": [],
        "open": [],
        "partial": "",
    }
