"""The wire: which frame is legal when, what is refused and how, and that the module is pure."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot import protocol
from chatbot.errors import (
    Conflict,
    FrontdeskError,
    MessageTooLong,
    ProtocolViolation,
    RateLimited,
    RequestRefused,
    StorageFull,
    StoreUnavailable,
)
from chatbot.protocol import CloseCode, SocketState, parse_desk_frame, parse_visitor_frame

VISITOR_FRAMES: dict[str, dict[str, Any]] = {
    "hello": {"token": "t"},
    "message.send": {"client_message_id": "m-1", "text": "hi"},
    "reply.stop": {"reply_id": "r-1"},
    "typing": {},
    "ping": {},
    "handoff.request": {},
    "rating.give": {"score": 5},
    "visitor.describe": {"client_message_id": "m-1", "facts": {"plan": "gold"}},
    "contact.leave": {"client_message_id": "m-1", "email": "ada@shop.example", "text": "hi"},
    "people.ask": {},
    "conversation.end": {},
}
DESK_FRAMES: dict[str, dict[str, Any]] = {
    "hello": {"token": "t"},
    "conversation.watch": {"conversation_id": "c-1"},
    "conversation.unwatch": {"conversation_id": "c-1"},
    "conversation.claim": {"conversation_id": "c-1"},
    "conversation.release": {"conversation_id": "c-1"},
    "conversation.close": {"conversation_id": "c-1"},
    "conversation.transfer": {"conversation_id": "c-1", "agent": "ben"},
    "tags.set": {"conversation_id": "c-1", "tags": ["delivery"]},
    "suggestion.feedback": {"conversation_id": "c-1", "suggestions_id": "s-1"},
    "message.send": {"conversation_id": "c-1", "client_message_id": "m-1", "text": "hi"},
    "note.add": {"conversation_id": "c-1", "client_message_id": "m-1", "text": "hi"},
    "ping": {},
}
SIDES = [
    pytest.param(parse_visitor_frame, VISITOR_FRAMES, id="visitor"),
    pytest.param(parse_desk_frame, DESK_FRAMES, id="desk"),
]


def _frame(kind: str, fields: dict[str, Any]) -> str:
    return json.dumps({"type": kind, **fields})


@pytest.mark.parametrize("state", list(SocketState))
@pytest.mark.parametrize(
    ("parse", "kind", "fields"),
    [
        pytest.param(parse, kind, fields, id=f"{side}-{kind}")
        for side, parse, frames in (
            ("visitor", parse_visitor_frame, VISITOR_FRAMES),
            ("desk", parse_desk_frame, DESK_FRAMES),
        )
        for kind, fields in frames.items()
    ],
)
def test_each_state_takes_its_frames_only(
    state: SocketState, parse: Any, kind: str, fields: dict[str, Any]
) -> None:
    legal = {
        SocketState.AWAITING_HELLO: kind == "hello",
        SocketState.OPEN: kind != "hello",
        SocketState.CLOSED: False,
    }[state]
    if legal:
        assert parse(_frame(kind, fields), state).type == kind
    else:
        with pytest.raises(ProtocolViolation):
            parse(_frame(kind, fields), state)


@pytest.mark.parametrize(("parse", "frames"), SIDES)
def test_the_matrix_above_names_every_frame(parse: Any, frames: dict[str, Any]) -> None:
    union = protocol._VISITOR if parse is parse_visitor_frame else protocol._DESK
    known = union.json_schema()["discriminator"]["mapping"]
    assert set(known) == set(frames)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"hello"',
        "{}",
        '{"type": 1}',
        '{"type": "reply.delta"}',
        '{"type": "no.such"}',
        '{"type": "typing", "extra": 1}',
        '{"type": "message.send", "text": "hi"}',
        '{"type": "message.send", "client_message_id": 1, "text": "hi"}',
        '{"type": "message.send", "client_message_id": "a b", "text": "hi"}',
        '{"type": "message.send", "client_message_id": "a\\n", "text": "hi"}',
        '{"type": "message.send", "client_message_id": "m", "text": 5}',
        '{"type": "message.send", "client_message_id": "m", "text": "\\ud800"}',
        '{"type": "rating.give", "score": 6}',
        '{"type": "visitor.describe", "client_message_id": "m", "facts": {"": "x"}}',
        '{"type": "visitor.describe", "client_message_id": "m", "facts": {"list": [1]}}',
        '{"type": "contact.leave", "client_message_id": "m", "email": "nobody", "text": "hi"}',
        '{"type": "rating.give", "score": 0}',
        '{"type": "rating.give", "score": 2.5}',
        '{"type": "rating.give", "score": NaN}',
        "[" * 100_000,
        '{"type": "typing"} x',
    ],
)
def test_malformed_frames_are_refused(text: str) -> None:
    with pytest.raises(ProtocolViolation) as refused:
        parse_visitor_frame(text, SocketState.OPEN)
    assert str(refused.value)


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(ProtocolViolation) as refused:
        parse_visitor_frame(_frame("hello", {"token": ["secret-token"]}), SocketState.OPEN)
    assert "secret-token" not in str(refused.value)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_frame_or_a_violation(text: str) -> None:
    try:
        parse_visitor_frame(text, SocketState.OPEN)
    except ProtocolViolation:
        pass


def test_a_conversation_id_is_a_string() -> None:
    with pytest.raises(ProtocolViolation, match="conversation_id"):
        parse_visitor_frame(
            _frame("hello", {"token": "t", "conversation_id": 1}), SocketState.AWAITING_HELLO
        )


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u00a0\u3000"])
def test_nothing_but_white_space_is_no_message(text: str) -> None:
    with pytest.raises(RequestRefused, match="empty"):
        protocol.check_text(text, 10)


def test_text_limits() -> None:
    assert protocol.check_text("x" * 10, 10) == "x" * 10
    assert protocol.check_text("😀" * 10, 10) == "😀" * 10  # code points, not bytes
    with pytest.raises(MessageTooLong, match="11 characters, at most 10"):
        protocol.check_text("x" * 11, 10)
    with pytest.raises(RequestRefused, match="NUL"):
        protocol.check_text("a\0b", 10)


def test_frames_are_compact_json_and_keep_every_character() -> None:
    frame = protocol.reply_delta("r-1", 3, 'ü "quoted" 😀\n</script>')
    text = protocol.encode(frame)
    assert json.loads(text) == frame
    assert "\n" not in text
    assert ": " not in text


def test_error_frames() -> None:
    limited = protocol.error_of(RateLimited("slow down", retry_after=1.234), client_message_id="m")
    assert limited == {
        "type": "error",
        "code": "rate_limited",
        "message": "slow down",
        "client_message_id": "m",
        "retry_after": 1.23,
    }
    assert protocol.error_of(Conflict("held by anna"))["message"] == "held by anna"
    away = protocol.error_of(StoreUnavailable("redis://secret-host:6379 refused"))
    assert away["code"] == "store_unavailable"
    assert away["retry_after"] > 0
    assert protocol.error_of(StorageFull("no room"))["retry_after"] > 0  # a client keeps it
    assert "secret-host" not in away["message"]


def test_a_visitor_sees_no_notes_and_no_staff_fields() -> None:
    note = {"type": "note.created", "offset": 1, "at": 0, "text": "rude", "author": "anna"}
    assert protocol.visitor_event(note) is None
    failed = {
        "type": "reply.failed",
        "offset": 2,
        "at": 0,
        "reply_id": "r",
        "text": "",
        "reason": "OOM",
    }
    assert protocol.visitor_event(failed) == {
        "type": "reply.failed",
        "offset": 2,
        "at": 0,
        "reply_id": "r",
        "text": "",
    }
    closed = {
        "type": "status.changed",
        "offset": 3,
        "at": 0,
        "status": "closed",
        "actor": "anna",
        "reason": "abusive",
    }
    seen = protocol.visitor_event(closed)
    assert seen is not None
    assert "reason" not in seen
    unknown = {"type": "some.new.type", "offset": 3, "at": 0}
    assert protocol.visitor_event(unknown) is None  # new types are staff-only until allowed


def test_close_codes_are_explained_and_may_be_sent() -> None:
    for code in CloseCode:
        # RFC 6455 section 7.4: 1005, 1006 and 1015 never go over the wire
        assert 1000 <= code < 5000
        assert code not in (1005, 1006, 1015)
        assert code < 1016 or code >= 4000
    source = Path(protocol.__file__).read_text().split("class CloseCode")[1].split("\nclass ")[0]
    lines = [line for line in source.splitlines() if " = " in line]
    assert len(lines) == len(CloseCode)
    assert all("#" in line for line in lines)


def test_the_module_is_pure() -> None:
    tree = ast.parse(Path(protocol.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {"json", "enum", "typing", "pydantic", "chatbot"}
    code = "import sys, chatbot.protocol; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"fastapi", "starlette", "redis", "torch", "sqlalchemy"} & set(loaded)


def test_every_error_of_the_tree_makes_a_frame() -> None:
    def leaves(kind: type[FrontdeskError]) -> list[type[FrontdeskError]]:
        return [kind] + [leaf for child in kind.__subclasses__() for leaf in leaves(child)]

    for kind in leaves(FrontdeskError):
        frame = protocol.error_of(kind("what is wrong"))
        assert frame["code"] == kind.code
        assert frame["message"]
