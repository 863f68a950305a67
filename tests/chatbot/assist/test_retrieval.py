"""The closest past replies."""

import numpy as np
import pytest

from chatbot.assist.retrieval import (
    PRIOR,
    Example,
    ReplyIndex,
    Situation,
    examples_of,
    situation_of,
    told,
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
        user="To the station\nat noon",
        agent="Where to?",
        tool="found: 1",
        system="You book rides.",
        looked_up="found: 1",
        before="",
        place="1",
    )
    assert situation_of(TALK[:2]) == Situation("Hello", "", "", "You book rides.")
    assert situation_of([]) == Situation("", "", "", "")


def test_a_situation_knows_how_far_the_conversation_has_come() -> None:
    later: list[ChatMessage] = [
        *TALK,
        {"role": "assistant", "content": "There is one at noon."},
        {"role": "user", "content": "Fine"},
    ]
    found = situation_of(later)
    assert (found.user, found.agent, found.tool) == ("Fine", "There is one at noon.", "")
    assert (found.looked_up, found.before, found.place) == ("found: 1", "Where to?", "2")


def test_what_was_asked_before_decides_between_equal_moments() -> None:
    index = ReplyIndex(
        Example(Situation("yes", "Anything else?", "", "", before=before, place="2"), reply, "x")
        for before, reply in (("Which street?", "And at what time?"), ("When?", "And where?"))
    )
    asked = Situation("yes", "Anything else?", "", "", before="When?", place="2")
    (_, best), *_ = index.nearest(asked)
    assert best.reply == "And where?"


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


def test_a_term_tells_as_much_as_it_changes_what_is_likely() -> None:
    # term 0 stands before both replies alike, term 1 before reply 0 alone, term 2 did so once
    terms = np.array([0] * 200 + [1] * 100 + [2])
    replies = np.array([0, 1] * 100 + [0] * 100 + [0])
    even, telling, once = told(terms, replies, 3)
    general = 201 / 301
    given = (100 + PRIOR * general) / (100 + PRIOR)
    assert telling == pytest.approx(
        given * np.log(given / general) + (1 - given) * np.log((1 - given) / (1 - general))
    )
    assert telling > 5 * once > 0
    assert even < telling
    assert told(terms, np.full(len(terms), -1), 3).tolist() == [0.0, 0.0, 0.0]


def test_a_word_that_tells_of_the_reply_weighs_more_than_a_rare_name() -> None:
    often = [example(f"refund N{n}", "Which order?") for n in range(200)]
    often += [example(f"cancel M{n}", "Which booking?") for n in range(200)]
    index = ReplyIndex([*often, example("cancel Zed", "Which booking?")])
    (_, best), *_ = index.nearest(Situation("refund Zed", "", "", ""))
    assert best.reply == "Which order?"


def test_many_near_situations_outvote_a_nearer_one() -> None:
    near = [(0.7, example(str(number), "common")) for number in range(5)]
    first, second = vote([(0.75, example("x", "rare")), *near])
    assert (first.reply, second.reply) == ("common", "rare")
    assert first.share > 0.5 > second.share
    assert abs(first.share + second.share - 1) < 1e-6


def test_an_empty_index_knows_nothing() -> None:
    assert ReplyIndex([]).nearest(Situation("hello", "", "", "")) == []
    assert vote([]) == []
