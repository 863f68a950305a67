"""The closest past replies."""

from chatbot.assist.retrieval import (
    Example,
    ReplyIndex,
    Situation,
    examples_of,
    situation_of,
    vote,
)
from chatbot.prompt import ChatMessage

TALK: list[ChatMessage] = [
    {"role": "system", "content": "You book rides."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Where to?"},
    {"role": "user", "content": "To the station"},
    {"role": "user", "content": "at noon"},
    {"role": "tool", "content": "found: 1"},
]


def example(user: str, reply: str, agent: str = "") -> Example:
    return Example(Situation(user, agent, "", ""), reply, f"about {user}")


def test_a_situation_is_what_was_said_since_the_last_reply() -> None:
    assert situation_of(TALK) == Situation(
        "To the station\nat noon", "Where to?", "found: 1", "You book rides."
    )
    assert situation_of(TALK[:2]) == Situation("Hello", "", "", "You book rides.")
    assert situation_of([]) == Situation("", "", "", "")


def test_replies_of_weight_0_and_empty_ones_are_no_examples() -> None:
    messages: list[ChatMessage] = [
        *TALK[:2],
        {"role": "assistant", "content": "wrong", "weight": 0},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "  "},
        {"role": "assistant", "content": " right "},
    ]
    assert [found.reply for found in examples_of(messages, "x")] == ["right"]


def test_the_nearest_situation_comes_first_and_says_where_it_is_from() -> None:
    index = ReplyIndex(
        [
            example("where is my parcel", "Which order is it?"),
            example("my card was refused", "Which bank is it?"),
            example("hello", "Hi!"),
        ]
    )
    (like, best), *_ = index.nearest(Situation("is my parcel lost?", "", "", ""))
    assert best.reply == "Which order is it?"
    assert best.source == "about where is my parcel"
    assert 0 < like < 1
    (whole, _), *_ = index.nearest(Situation("hello", "", "", ""))
    assert abs(whole - 1) < 1e-5  # itself


def test_the_same_word_of_a_visitor_and_of_an_agent_is_not_the_same() -> None:
    index = ReplyIndex(
        [example("yes", "Good.", agent="sure?"), example("sure?", "Certainly.", agent="yes")]
    )
    (_, best), *_ = index.nearest(Situation("yes", "sure?", "", ""))
    assert best.reply == "Good."


def test_many_near_situations_outvote_a_nearer_one() -> None:
    near = [(0.7, example(str(number), "common")) for number in range(5)]
    first, second = vote([(0.75, example("x", "rare")), *near])
    assert (first.reply, second.reply) == ("common", "rare")
    assert first.share > 0.5 > second.share
    assert abs(first.share + second.share - 1) < 1e-6


def test_an_empty_index_knows_nothing() -> None:
    assert ReplyIndex([]).nearest(Situation("hello", "", "", "")) == []
    assert vote([]) == []
