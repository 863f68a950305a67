"""The turn rules: which moves are legal, and whose turn a log says it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.conversation.events import Event
from chatbot.conversation.rules import MOVES, STATUSES, check_move, turn_after
from chatbot.errors import Conflict, InputError

statuses = st.sampled_from(STATUSES)
names = st.sampled_from(["", "anna", "ben"])


@given(status=statuses, holder=names, target=statuses, agent=names, actor=names)
def test_every_pair_has_one_outcome(
    status: str, holder: str, target: str, agent: str, actor: str
) -> None:
    if status == "human" and not holder:
        holder = "anna"
    hands_over = status == target == "human" and agent not in ("", holder)
    try:
        outcome = check_move(status, holder, target, agent, actor)  # type: ignore[arg-type]
    except InputError:
        assert target == "human"
        assert not agent
        return
    except Conflict:
        another = status == "human" and agent != holder and target in ("human", "waiting")
        assert actor != holder if hands_over else True
        assert another or target not in MOVES[status]  # type: ignore[index]
        return
    if outcome == "nothing":
        assert status == target
    else:
        assert status != target or (hands_over and actor == holder)
        assert target in MOVES[status]  # type: ignore[index]


@given(status=statuses, holder=names)
def test_nobody_is_stuck(status: str, holder: str) -> None:
    """From everywhere the bot and an agent can be reached, whoever holds it now."""
    assert check_move(status, holder, "bot", "") in ("move", "nothing")  # type: ignore[arg-type]
    if status != "human":
        assert check_move(status, "", "human", "ben") == "move"  # type: ignore[arg-type]


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(InputError, match="'robot' is not a status"):
        check_move("bot", "", "robot", "")  # type: ignore[arg-type]


def test_the_refusal_says_who_holds_it() -> None:
    with pytest.raises(Conflict, match="anna holds"):
        check_move("human", "anna", "human", "ben")
    with pytest.raises(Conflict, match="closed cannot become waiting"):
        check_move("closed", "", "waiting", "")


def test_the_turn_of_a_log() -> None:
    events = [
        Event(1, "message.created", 1, {"role": "visitor", "text": "a"}),
        Event(2, "message.created", 2, {"role": "visitor", "text": "b"}),
        Event(3, "reply.completed", 3, {"text": "A", "finish_reason": "end", "upto": 1}),
    ]
    assert turn_after([]).bot_owes_reply is False
    assert turn_after(events).bot_owes_reply is True  # b was not read yet
    done = Event(4, "reply.completed", 4, {"text": "B", "finish_reason": "end", "upto": 3})
    assert turn_after([*events, done]).bot_owes_reply is False
    held = Event(4, "status.changed", 4, {"status": "human", "agent": "anna"})
    turn = turn_after([*events, held])
    assert (turn.status, turn.agent, turn.bot_owes_reply) == ("human", "anna", False)
