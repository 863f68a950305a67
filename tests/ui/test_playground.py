"""Two versions side by side, streamed; and the merging of their streams."""

import threading
from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import Console, named, texts
from tests.ui.fake_api import SCRIPT, World
from ui.answers import PlaygroundLine
from ui.api import ApiError
from ui.side_by_side import Reply, Turn, fill, merged, messages_for


def say(at: AppTest, text: str) -> AppTest:
    at = at.chat_input[0].set_value(text).run()
    assert not at.exception
    return at


def test_both_versions_answer_with_time_and_tokens(console: Console, world: World) -> None:
    at = say(console("playground", user="rae"), "Where is my order?")
    shown = [text.value for text in at.text]
    assert "Hello there. (by v2)" in shown
    assert "Hello there. (by v4)" in shown
    assert "9 tokens" in texts(at)
    assert "prompt 50, 40 of it cached" in texts(at)


def test_each_side_keeps_its_own_conversation(console: Console, world: World) -> None:
    at = console("playground")
    named(at.text_area, "System prompt").input("Be brief.")
    at = say(at, "one")
    say(at, "two")
    last = {body["version"]: body for body in world.called("POST", "/playground")}
    assert last["v2"]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello there. (by v2)"},
        {"role": "user", "content": "two"},
    ]
    assert last["v4"]["messages"][1]["content"] == "Hello there. (by v4)"
    assert last["v2"]["system_prompt"] == "Be brief."


def test_start_over_forgets_the_turns(console: Console) -> None:
    at = say(console("playground"), "one")
    at = named(at.button, "Start over").click().run()
    assert not at.exception
    assert "Hello there. (by v2)" not in [text.value for text in at.text]


def test_an_error_of_the_stream_is_shown(console: Console, world: World) -> None:
    world.reply_error = {"code": "busy", "message": "the engine's queue is full"}
    at = say(console("playground"), "one")
    assert "No complete reply." in texts(at)
    assert "the engine's queue is full" in texts(at)


def test_model_text_is_shown_as_text(console: Console, world: World) -> None:
    world.reply = SCRIPT
    at = say(console("playground"), SCRIPT)
    assert SCRIPT in [text.value for text in at.text]
    for element in [*at.markdown, *at.caption, *at.html]:
        assert "<script>window" not in str(element.value)


def test_without_versions_it_says_what_to_do(console: Console, world: World) -> None:
    world.versions.clear()
    assert "There is no version to talk to yet." in texts(console("playground"))


# -- the merging, without a page


def delta(text: str) -> PlaygroundLine:
    return PlaygroundLine(type="delta", text=text)


def test_lines_come_in_the_order_of_their_arrival() -> None:
    first, second = threading.Event(), threading.Event()

    def left() -> Iterator[PlaygroundLine]:
        yield delta("l1")
        assert first.wait(10)
        yield delta("l2")

    def right() -> Iterator[PlaygroundLine]:
        assert second.wait(10)
        yield delta("r1")

    got = []
    for _, line in merged({"left": left(), "right": right()}):
        assert isinstance(line, PlaygroundLine)
        got.append(line.text)
        {"l1": second, "r1": first}.get(line.text, first).set()
    assert got == ["l1", "r1", "l2"]


def test_an_error_of_one_side_leaves_the_other_alone() -> None:
    def broken() -> Iterator[PlaygroundLine]:
        yield delta("half")
        raise ApiError("busy", "no room")

    whole = iter([delta("all of it"), PlaygroundLine(type="done", text="all of it", seconds=1.0)])
    replies = {"left": Reply("a"), "right": Reply("b")}
    list(fill(replies, {"left": broken(), "right": whole}))
    assert (replies["left"].text, replies["left"].error) == ("half", "no room")
    assert (replies["right"].text, replies["right"].finish_reason) == ("all of it", "end")


def test_leaving_in_the_middle_closes_the_streams() -> None:
    closed = threading.Event()

    def endless() -> Iterator[PlaygroundLine]:
        try:
            while True:
                yield delta("and on ")
        finally:
            closed.set()

    reading = merged({"left": endless()})
    next(reading)
    reading.close()
    assert closed.wait(10)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_turn_without_a_reply_is_left_out_of_the_prompt(side: str) -> None:
    turns = [
        Turn("lost", {"left": Reply("a"), "right": Reply("b")}),
        Turn("kept", {"left": Reply("a", text="x"), "right": Reply("b", text="y")}),
    ]
    assert messages_for(turns, side)[0]["content"] == "kept"
