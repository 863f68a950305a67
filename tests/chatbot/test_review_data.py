"""What staff's reviews teach the next version, and what they must not."""

from typing import Any

import pytest

from chatbot.record.database import Database
from chatbot.record.tables import Conversation
from chatbot.review_data import excluded_conversations, reviewed_dialogues
from tests.chatbot.recorded import agent, record_conversation, reply, review, visitor


def _all(database: Database) -> list[dict[str, Any]]:
    return list(reviewed_dialogues(database, lambda site: f"Be kind to {site}."))


def _learned(dialogue: dict[str, Any]) -> list[str]:
    return [m["content"] for m in dialogue["messages"] if m.get("weight") == 1]


def _chat(database: Database, name: str = "c1") -> None:
    """Offsets 1 to 6: two questions answered, then a thank-you answered."""
    record_conversation(
        database,
        name,
        visitor("Where is my order?"),
        reply("On the moon."),
        visitor("On the moon?!"),
        reply("It arrives on Monday."),
        visitor("Thanks"),
        reply("You are welcome."),
    )


def test_unreviewed_conversations_are_not_used(database: Database) -> None:
    _chat(database)
    assert _all(database) == []


def test_a_good_reply_is_learned_and_the_rest_is_context(database: Database) -> None:
    _chat(database)
    review(database, "c1", 4, "good")
    assert _all(database) == [
        {
            "messages": [
                {"role": "system", "content": "Be kind to demo."},
                {"role": "user", "content": "Where is my order?"},
                {"role": "assistant", "content": "On the moon.", "weight": 0},
                {"role": "user", "content": "On the moon?!"},
                {"role": "assistant", "content": "It arrives on Monday.", "weight": 1},
            ],
            "meta": {"id": "c1", "source": "review", "site": "demo", "correction": False},
        }
    ]


def test_a_correction_takes_the_replys_place_and_ends_the_dialogue(database: Database) -> None:
    _chat(database)
    review(database, "c1", 2, "bad", "It arrives on Monday.")
    assert _all(database) == [
        {
            "messages": [
                {"role": "system", "content": "Be kind to demo."},
                {"role": "user", "content": "Where is my order?"},
                {"role": "assistant", "content": "It arrives on Monday.", "weight": 1},
            ],
            "meta": {"id": "c1#2", "source": "review", "site": "demo", "correction": True},
        }
    ]


def test_a_later_good_reply_keeps_the_words_that_it_answered(database: Database) -> None:
    """Both are learned, each after what was really said: "On the moon?!" never follows the
    corrected text."""
    _chat(database)
    review(database, "c1", 2, "bad", "It arrives on Monday.")
    review(database, "c1", 4, "good")
    correction, whole = _all(database)
    assert _learned(correction) == ["It arrives on Monday."]
    assert len(correction["messages"]) == 3
    texts = [m["content"] for m in whole["messages"]]
    assert texts[2:5] == ["On the moon.", "On the moon?!", "It arrives on Monday."]
    assert _learned(whole) == ["It arrives on Monday."]
    assert len({d["meta"]["id"] for d in (correction, whole)}) == 2


def test_two_corrections_give_two_dialogues(database: Database) -> None:
    _chat(database)
    review(database, "c1", 2, None, "Monday.")
    review(database, "c1", 6, None, "Bye!")
    first, second = _all(database)
    assert _learned(first) == ["Monday."]
    assert _learned(second) == ["Bye!"]
    assert second["messages"][2]["content"] == "On the moon."


def test_agents_words_are_learned_in_reviewed_conversations(database: Database) -> None:
    record_conversation(
        database, "c1", visitor("Hi"), reply("???"), visitor("Human!"), agent("Ada here.")
    )
    review(database, "c1", 2, "bad")
    (dialogue,) = _all(database)
    assert _learned(dialogue) == ["Ada here."]


def test_only_bad_replies_give_nothing(database: Database) -> None:
    _chat(database)
    review(database, "c1", 2, "bad")
    assert _all(database) == []


@pytest.mark.parametrize("end", ["length", "stopped", "handoff"])
def test_a_cut_reply_is_never_learned(database: Database, end: str) -> None:
    record_conversation(database, "c1", visitor("Hi"), reply("It arr", end=end))
    review(database, "c1", 2, "good")
    assert _all(database) == []


def test_a_blank_correction_is_none(database: Database) -> None:
    record_conversation(database, "c1", visitor("Hi"), reply("Hello"))
    review(database, "c1", 2, "good", "  ")
    (dialogue,) = _all(database)
    assert _learned(dialogue) == ["Hello"]


def test_excluded_conversations_are_left_out_and_counted(database: Database) -> None:
    _chat(database, "c1")
    _chat(database, "c2")
    for name in ("c1", "c2"):
        review(database, name, 4, "good")
    with database.session() as session:
        row = session.get(Conversation, "c1")
        assert row is not None
        row.excluded = True
    assert [d["meta"]["id"] for d in _all(database)] == ["c2"]
    assert excluded_conversations(database) == 1


def test_the_oldest_conversation_comes_first(database: Database) -> None:
    for name, at in (("late", 3000), ("early", 1000), ("mid", 2000)):
        record_conversation(database, name, visitor("Hi"), reply("Hello"), at=at)
        review(database, name, 2, "good")
    assert [d["meta"]["id"] for d in _all(database)] == ["early", "mid", "late"]


def test_a_message_written_during_the_reply_comes_after_the_correction(
    database: Database,
) -> None:
    """The reply at offset 3 had read the log up to offset 1."""
    record_conversation(
        database,
        "c1",
        visitor("Where is it?"),
        visitor("And when do you close?"),
        reply("On the moon.", upto=1),
    )
    review(database, "c1", 3, None, "On its way.")
    (dialogue,) = _all(database)
    assert [m["content"] for m in dialogue["messages"]][1:] == ["Where is it?", "On its way."]


def test_no_system_message_without_a_prompt(database: Database) -> None:
    record_conversation(database, "c1", visitor("Hi"), reply("Hello"))
    review(database, "c1", 2, "good")
    (dialogue,) = reviewed_dialogues(database, lambda _site: "")
    assert dialogue["messages"][0]["role"] == "user"
