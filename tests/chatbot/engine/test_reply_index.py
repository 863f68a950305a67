"""What the index proposes, whom it tells, and what it keeps."""

import random

from chatbot.engine.torch.reply_index import SUPPORT, ReplyIndex

HELLO = [10, 11, 12, 13, 14]


def taught(tokens: list[int], conversations: int, scope: str = "shop") -> ReplyIndex:
    index = ReplyIndex()
    for number in range(conversations):
        index.teach(scope, tokens, f"c{number}")
    return index


def test_what_enough_conversations_said_is_drafted_from_the_first_token_on() -> None:
    index = taught(HELLO, SUPPORT)
    assert index.draft(["shop"], [], 8)[0] == HELLO
    assert index.draft(["shop"], HELLO[:2], 2)[0] == HELLO[2:4]
    assert index.draft(["shop"], HELLO, 8)[0] == []


def test_what_fewer_said_is_not_however_often() -> None:
    index = taught(HELLO, SUPPORT - 1)
    for _ in range(10):
        index.teach("shop", HELLO, "c0")
    assert index.draft(["shop"], [], 8)[0] == []
    assert index.draft(["shop"], HELLO[:3], 8)[0] == []


def test_the_private_part_of_a_common_sentence_is_not_drafted() -> None:
    """Order numbers in the same sentence: the sentence is common, a number is not."""
    index = ReplyIndex()
    for number in range(6):
        index.teach("shop", [10, 11, 100 + number, 12, 13], f"c{number}")
    assert index.draft(["shop"], [10], 8)[0] == [11]
    assert index.draft(["shop"], [10, 11], 8)[0] == []
    for number in range(6):
        # after the number the sentence goes on as for everybody, but the pair is one's own
        assert index.draft(["shop"], [10, 11, 100 + number], 8)[0] == []
    assert index.draft(["shop"], [10, 11, 103, 12], 8)[0] == []


def test_public_text_needs_no_support() -> None:
    index = ReplyIndex()
    index.teach("version", HELLO, None)
    assert index.draft(["version"], [], 3)[0] == HELLO[:3]


def test_scopes_never_see_each_other() -> None:
    index = taught(HELLO, SUPPORT, "shop")
    assert index.draft(["bank"], [], 8)[0] == []
    assert index.draft([], [], 8)[0] == []
    for number in range(SUPPORT - 1):
        index.teach("bank", HELLO, f"b{number}")
    assert index.draft(["bank"], [], 8)[0] == []


def test_the_longest_match_decides_and_then_the_majority() -> None:
    index = ReplyIndex()
    for number in range(6):
        index.teach("shop", [1, 5, 6, 7], f"a{number}")
    for number in range(3):
        index.teach("shop", [2, 5, 6, 8], f"b{number}")
    assert index.draft(["shop"], [2, 5, 6], 1) == ([8], 4)  # the start counts as one
    assert index.draft(["shop"], [1, 5, 6], 1) == ([7], 4)
    assert index.draft(["shop"], [3, 5, 6], 1) == ([7], 2)
    assert index.draft(["shop"], [], 1)[0] == [1]


def test_memory_is_bounded_and_what_was_taught_last_stays() -> None:
    index = ReplyIndex(most_tokens=100, most_scopes=3)
    randoms = random.Random(1)
    for number in range(300):
        tokens = [randoms.randrange(50) for _ in range(randoms.randrange(1, 20))]
        index.teach(f"scope {number % 5}", tokens, f"c{number}")
        assert index.tokens <= 300
        assert len(index._scopes) <= 3
    for scope in index._scopes.values():
        held = sum(len(places) for places in scope._places.values())
        assert held == scope.tokens == sum(len(key) - 1 for key in scope._replies)
    for _ in range(40):  # the same again and again is kept once
        index.teach("scope 0", HELLO, None)
    for number in range(5):
        index.teach("scope 0", [60 + number] * 20, None)
    assert index.draft(["scope 0"], [60 + 4] * 2, 1)[0] == [64]
    assert index.draft(["scope 0"], HELLO[:2], 1)[0] == []  # went to make room


def test_a_reply_longer_than_the_memory_is_left_out() -> None:
    index = ReplyIndex(most_tokens=4)
    index.teach("shop", HELLO, None)
    index.teach("shop", [], None)
    assert index.tokens == 0
