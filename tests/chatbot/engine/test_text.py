"""Detokenizer and stop strings."""

import itertools
import random

import pytest

from chatbot.engine.torch.text import Detokenizer, StopStrings
from tests.chatbot.engine.helpers import ByteTokenizer


def pieces(data: bytes) -> list[str]:
    detokenizer = Detokenizer(ByteTokenizer())
    return [*(detokenizer.push(byte) for byte in data), detokenizer.flush()]


@pytest.mark.parametrize("text", ["naïve", "👍🏽 ok 👩‍👩‍👧", "日本語 ✓", "plain", ""])
def test_characters_are_never_cut(text: str) -> None:
    shown = pieces(text.encode())
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


def test_a_cut_character_at_the_end_shows_once() -> None:
    shown = pieces("ab👍".encode()[:-1])
    assert shown[:2] == ["a", "b"]
    assert shown[-1] == "\ufffd"


def test_bytes_that_never_become_text_are_shown_after_a_bounded_wait() -> None:
    shown = pieces(b"\xff" * 100)
    assert "".join(shown) == "\ufffd" * 100
    assert max(map(len, shown)) <= 16


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def shown_of(stop: tuple[str, ...], parts: list[str]) -> tuple[str, bool]:
    stops, shown = StopStrings(stop), ""
    for part in parts:
        text, stopped = stops.push(part)
        shown += text
        if stopped:
            return shown, True
    return shown + stops.flush(), False


@pytest.mark.parametrize("seed", range(30))
def test_a_stop_string_is_found_however_the_text_is_cut(seed: int) -> None:
    source = random.Random(seed)
    text = "One two.\nUser: three"
    parts = cut(text, [source.randrange(len(text)) for _ in range(source.randrange(12))])
    assert shown_of(("\nUser:", "four"), parts) == ("One two.", True)


def test_text_that_only_begins_like_a_stop_string_is_delivered() -> None:
    assert shown_of(("abcd",), list("xxabcxab")) == ("xxabcxab", False)


def test_the_first_stop_string_in_the_text_counts() -> None:
    assert shown_of(("late", "early"), ["so early and late"]) == ("so ", True)


def test_a_stop_string_inside_a_repeated_start_is_found() -> None:
    assert shown_of(("aab",), list("aaab")) == ("a", True)
