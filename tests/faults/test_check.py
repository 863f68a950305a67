"""The checker sees what it is there for: each kind of wrong, and nothing where all is well."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from bench.faults.check import compare
from bench.faults.engine import is_whole, words_of
from bench.faults.visitors import Visitor
from chatbot.conversation.events import Event

TEXT = "".join(words_of("a prompt", 5))
Story = tuple[Visitor, list[Event]]


def _event(offset: int, kind: str, **data: Any) -> Event:
    return Event(offset, kind, 0, data)  # type: ignore[arg-type]


def _said(offset: int, message_id: str) -> Event:
    return _event(
        offset, "message.created", role="visitor", text="hi", client_message_id=message_id
    )


def _replied(offset: int, text: str = TEXT) -> Event:
    return _event(offset, "reply.completed", reply_id="r-1", text=text, finish_reason="end")


def _status(offset: int, status: str) -> Event:
    return _event(offset, "status.changed", status=status)


def _all_well() -> Story:
    visitor = Visitor("v", cast(Any, None), cast(Any, None))
    visitor.sent["m-1"] = "hi"
    visitor.acknowledged["m-1"] += 1
    visitor.said[1] += 1
    visitor.streamed["r-1"] = TEXT
    visitor.ended["r-1"] = ("end", TEXT)
    visitor.endings["r-1"] += 1
    return visitor, [_said(1, "m-1"), _replied(2)]


def test_nothing_is_found_where_all_is_well() -> None:
    found = compare(*_all_well(), sealed=True, whole=True)
    assert found.clean
    assert (found.messages, found.acknowledged, found.replies) == (1, 1, 1)


def _lost(story: Story) -> None:
    story[0].acknowledged["m-2"] += 1


def _twice_in_the_log(story: Story) -> None:
    story[1].append(_said(3, "m-1"))
    story[0].said[3] += 1


def _shown_twice(story: Story) -> None:
    story[0].said[1] += 1


def _shown_otherwise(story: Story) -> None:
    story[0].ended["r-1"] = ("end", TEXT + "!")


def _streamed_otherwise(story: Story) -> None:
    story[0].streamed["r-1"] = "something else"


def _put_together_from_two(story: Story) -> None:
    doubled = TEXT[:6] + TEXT
    story[1][1] = _replied(2, doubled)
    story[0].ended["r-1"] = ("end", doubled)
    story[0].streamed["r-1"] = doubled


def _ended_twice(story: Story) -> None:
    story[0].endings["r-1"] += 1


def _offset_missing(story: Story) -> None:
    story[1][1] = _replied(3)


def _not_shown(story: Story) -> None:
    story[0].said.clear()


def _talked_over(story: Story) -> None:
    story[1][1:] = [_status(2, "human"), _replied(3)]


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (_lost, "lost"),
        (_twice_in_the_log, "duplicated"),
        (_shown_twice, "duplicated"),
        (_shown_otherwise, "torn"),
        (_streamed_otherwise, "torn"),
        (_put_together_from_two, "torn"),
        (_ended_twice, "repeated"),
        (_offset_missing, "gaps"),
        (_not_shown, "gaps"),
        (_talked_over, "talked_over"),
    ],
)
def test_each_kind_of_wrong_is_found(spoil: Callable[[Story], None], name: str) -> None:
    story = _all_well()
    spoil(story)
    found = compare(*story, sealed=True, whole=True)
    assert getattr(found, name) == 1
    assert not found.clean


def test_a_seal_fits_its_own_text_only() -> None:
    assert is_whole(TEXT)
    assert not is_whole(TEXT[:-1])
    assert not is_whole(TEXT[1:])
    assert not is_whole("")
