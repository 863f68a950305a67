"""The client's state, without any network: order, gaps, doubles, resends."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.client_state import (
    MOST_UNACKNOWLEDGED,
    Accepted,
    ChatState,
    Connected,
    Gap,
    Problem,
    ReplyEnded,
    ReplyStarted,
    ReplyText,
    Said,
    StatusChanged,
    Update,
)
from chatbot.errors import Overloaded

Frame = dict[str, Any]


def _welcome(**fields: Any) -> Frame:
    return {
        "type": "welcome",
        "conversation_id": "c-1",
        "epoch": "e-1",
        "offset": 0,
        "recovered": False,
        "status": "bot",
        "events": [],
        "live_reply": None,
        **fields,
    }


def _created(offset: int, text: str, message_id: str = "m-1", role: str = "visitor") -> Frame:
    return {
        "type": "message.created",
        "offset": offset,
        "at": 0,
        "role": role,
        "text": text,
        "client_message_id": message_id,
        "author": "someone",
    }


def _delta(from_char: int, text: str, reply_id: str = "r-1") -> Frame:
    return {"type": "reply.delta", "reply_id": reply_id, "from_char": from_char, "text": text}


def _started(reply_id: str = "r-1") -> Frame:
    return {"type": "reply.started", "reply_id": reply_id, "version": "v-1"}


def _completed(offset: int, text: str, reply_id: str = "r-1") -> Frame:
    return {
        "type": "reply.completed",
        "offset": offset,
        "at": 0,
        "reply_id": reply_id,
        "text": text,
        "finish_reason": "end",
        "version": "v-1",
    }


def _feed(state: ChatState, *frames: Frame) -> list[Update]:
    return [update for frame in frames for update in state.receive(frame, now=0.0)]


def test_only_the_acknowledgement_acknowledges() -> None:
    """The log shows a message before the store's disk has it."""
    state = ChatState()
    state.add_message("m-1", "hi")
    _feed(state, _welcome(), _created(1, "hi"))
    assert list(state.unacknowledged) == ["m-1"]
    _feed(
        state,
        {
            "type": "message.accepted",
            "client_message_id": "m-1",
            "offset": 1,
            "duplicate": True,
        },
    )
    assert not state.unacknowledged


def test_a_whole_turn() -> None:
    state = ChatState()
    assert state.hello("t", False) == {"type": "hello", "token": "t"}
    assert state.hello("t", True) == {"type": "hello", "token": "t", "new_conversation": True}
    state.add_message("m-1", "hi")
    updates = _feed(
        state,
        _welcome(),
        {"type": "message.accepted", "client_message_id": "m-1", "offset": 1, "duplicate": False},
        _created(1, "hi"),
        _started(),
        _delta(0, "He"),
        _delta(2, "llo"),
        _completed(2, "Hello"),
        {
            "type": "status.changed",
            "offset": 3,
            "at": 0,
            "status": "waiting",
            "previous": "bot",
            "actor": "visitor",
        },
    )
    assert updates == [
        Connected("c-1", False, "bot"),
        Accepted("m-1", 1, False),
        Said("visitor", "hi", "someone", 1, "m-1"),
        ReplyStarted("r-1", "v-1"),
        ReplyText("r-1", "He", "He"),
        ReplyText("r-1", "llo", "Hello"),
        ReplyEnded("r-1", "Hello", "end", "v-1"),
        StatusChanged("waiting", "visitor"),
    ]
    assert not state.unacknowledged
    assert state.hello("t", True) == {
        "type": "hello",
        "token": "t",
        "conversation_id": "c-1",
        "epoch": "e-1",
        "offset": 3,
    }


@given(
    st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_doubled_and_overlapping_pieces_make_one_text(pieces: list[str], random: Any) -> None:
    whole = "".join(pieces)
    state = ChatState()
    _feed(state, _welcome(), _started())
    shown = ""
    for end in range(1, len(whole) + 1):
        start = random.randint(0, end - 1)
        for _ in range(random.randint(1, 2)):
            for update in _feed(state, _delta(start, whole[start:end])):
                assert isinstance(update, ReplyText)
                shown += update.text
                assert update.so_far == shown
    assert shown == whole


def test_a_gap_is_found() -> None:
    state = ChatState()
    _feed(state, _welcome(), _started(), _delta(0, "He"))
    with pytest.raises(Gap):
        _feed(state, _delta(3, "lo"))
    with pytest.raises(Gap):
        _feed(state, _delta(0, "x", "r-never-started"))


def test_events_are_taken_once() -> None:
    state = ChatState()
    assert len(_feed(state, _welcome(), _created(1, "a"), _created(1, "a"))) == 2
    assert _feed(state, _welcome(recovered=True, offset=1, events=[_created(1, "a")])) == [
        Connected("c-1", True, "bot")
    ]


def test_a_late_piece_of_an_ended_reply_is_nothing() -> None:
    state = ChatState()
    _feed(state, _welcome(), _started(), _completed(1, "Hello"))
    assert _feed(state, _delta(0, "Hello"), _started()) == []


def test_resuming_in_the_middle_of_a_reply() -> None:
    state = ChatState()
    _feed(state, _welcome(), _started(), _delta(0, "Hel"))
    live = {"reply_id": "r-1", "version": "v-1", "text": "Hello wor"}
    updates = _feed(state, _welcome(recovered=True, live_reply=live), _delta(9, "ld"))
    assert updates == [
        Connected("c-1", True, "bot"),
        ReplyText("r-1", "lo wor", "Hello wor"),
        ReplyText("r-1", "ld", "Hello world"),
    ]


def test_a_live_reply_that_is_not_what_was_shown_starts_anew() -> None:
    state = ChatState()
    _feed(state, _welcome(), _started(), _delta(0, "Hello"))
    live = {"reply_id": "r-1", "version": "v-1", "text": "Good day"}
    updates = _feed(state, _welcome(recovered=True, live_reply=live))
    assert updates[1:] == [ReplyStarted("r-1", "v-1"), ReplyText("r-1", "Good day", "Good day")]


def test_the_end_brings_what_was_missed() -> None:
    state = ChatState()
    _feed(state, _welcome(), _started(), _delta(0, "He"))
    event = _completed(1, "Hello")
    assert _feed(state, _welcome(recovered=True, offset=1, events=[event]))[1:] == [
        ReplyText("r-1", "llo", "Hello"),
        ReplyEnded("r-1", "Hello", "end", "v-1"),
    ]
    _feed(state, _started("r-2"), _delta(0, "Hi", "r-2"))
    assert _feed(state, _completed(2, "Good day", "r-2")) == [
        ReplyStarted("r-2", "v-1"),
        ReplyText("r-2", "Good day", "Good day"),
        ReplyEnded("r-2", "Good day", "end", "v-1"),
    ]


def test_a_reset_log_is_told_anew() -> None:
    state = ChatState()
    _feed(state, _welcome(), _created(1, "a"), _created(2, "b", "m-2"))
    updates = _feed(state, _welcome(epoch="e-2", offset=1, events=[_created(1, "a")]))
    assert updates == [
        Connected("c-1", False, "bot"),
        Said("visitor", "a", "someone", 1, "m-1"),
    ]
    assert (state.epoch, state.offset) == ("e-2", 1)


def test_refused_messages() -> None:
    state = ChatState()
    state.add_message("m-1", "later")
    state.add_message("m-2", "never")
    for message in state.unacknowledged.values():
        message.sent = True
    error = {"type": "error", "code": "rate_limited", "message": "slow down"}
    (later,) = state.receive({**error, "client_message_id": "m-1", "retry_after": 2.0}, now=10.0)
    (never,) = state.receive({**error, "client_message_id": "m-2"}, now=10.0)
    assert later == Problem("rate_limited", "slow down", 2.0, "m-1")
    assert never == Problem("rate_limited", "slow down", None, "m-2")
    assert list(state.unacknowledged) == ["m-1"]
    assert state.unacknowledged["m-1"].due == 12.0
    assert not state.unacknowledged["m-1"].sent


def test_a_conversation_that_is_gone_is_begun_anew() -> None:
    state = ChatState(conversation_id="c-1", epoch="e-1", offset=5)
    _feed(state, {"type": "error", "code": "not_found", "message": "gone"})
    assert state.hello("t", False) == {"type": "hello", "token": "t"}


def test_what_waits_is_bounded() -> None:
    state = ChatState()
    for number in range(MOST_UNACKNOWLEDGED):
        state.add_message(f"m-{number}", "x")
    with pytest.raises(Overloaded):
        state.add_message("m-more", "x")


def test_unknown_frames_are_no_harm() -> None:
    state = ChatState()
    assert _feed(state, _welcome(), {"type": "pong"}, {"type": "some.new", "offset": 1}) == [
        Connected("c-1", False, "bot")
    ]
