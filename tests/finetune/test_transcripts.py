"""Reading transcripts: each format, each way a line can be bad, nothing dropped in silence."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbot.errors import TranscriptError
from finetune.transcripts import (
    Columns,
    Dialogue,
    Reason,
    Rejected,
    canonical_line,
    read_transcripts,
)
from finetune.transcripts import files as transcript_files
from finetune.transcripts.files import Record, json_records
from finetune.transcripts.model import MAX_MESSAGE_CHARS, agent_kinds
from finetune.transcripts.openai_chat import dialogue_from
from finetune.transcripts.readers import Rejects, sniff
from finetune.transcripts.sets import Seen, exact_key, held_out, normal_key

Write = Callable[..., Path]
GOOD = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello!"},
    ],
    "meta": {"id": 7},
}


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(*lines: Any, name: str = "file.jsonl") -> Path:
        path = tmp_path / name
        parts = [
            line
            if isinstance(line, bytes)
            else (line if isinstance(line, str) else json.dumps(line)).encode()
            for line in lines
        ]
        data = b"\n".join(parts) + b"\n"
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return make


def only_rejected(path: Path, **options: Any) -> Rejected:
    """The one rejected line of a file whose other line is good."""
    items = list(read_transcripts(path, **options))
    [rejected] = [item for item in items if isinstance(item, Rejected)]
    assert sum(isinstance(item, Dialogue) for item in items) == 1
    return rejected


def test_canonical_lines_survive_a_round_trip(write: Write) -> None:
    [dialogue] = read_transcripts(write(GOOD))
    assert isinstance(dialogue, Dialogue)
    assert dialogue.meta == {"id": 7}
    assert json.loads(canonical_line(dialogue)) == GOOD
    assert dialogue_from(json.loads(canonical_line(dialogue)), 1) == dialogue


@pytest.mark.parametrize(
    "name", ["file.jsonl", "file.jsonl.gz", "packed-without-a-telling-name.gz"]
)
def test_gzip_is_transparent(name: str, write: Write) -> None:
    assert len(list(read_transcripts(write(GOOD, "", GOOD, name=name)))) == 2


@pytest.mark.parametrize(
    ("line", "reason", "says"),
    [
        ('{"messages": [', Reason.MALFORMED_JSON, "column"),
        ("not json", Reason.MALFORMED_JSON, "column 1"),
        ("[" * 100_000, Reason.MALFORMED_JSON, ""),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', Reason.INVALID_UTF8, "byte 44"),
        ('"text"', Reason.NOT_A_DIALOGUE, "messages"),
        ({"messages": []}, Reason.NOT_A_DIALOGUE, "at least one"),
        ({"messages": ["hi"]}, Reason.NOT_A_DIALOGUE, "message 1"),
        (chat(("robot", "hi")), Reason.UNKNOWN_ROLE, "role 'robot'"),
        (chat(("user", "hi")), Reason.NO_AGENT_TURN, "none by an agent"),
        (chat(("user", "hi"), ("assistant", "  ")), Reason.NO_AGENT_TURN, "nothing to learn"),
        (chat(("user", 5), ("assistant", "a")), Reason.BAD_CONTENT, "int, not text"),
        (chat(("user", None), ("assistant", "a")), Reason.BAD_CONTENT, "NoneType"),
        (
            chat(("user", [{"type": "image_url"}]), ("assistant", "a")),
            Reason.BAD_CONTENT,
            "image_url, not text",
        ),
        (
            chat(("user", "x" * 1024 * 1024), ("assistant", "a")),
            Reason.MESSAGE_TOO_LONG,
            "1,048,576 characters",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            Reason.BAD_WEIGHT,
            "0.5 is not 0 or 1",
        ),
    ],
)
def test_a_bad_line_is_rejected_by_name_and_the_next_one_read(
    line: Any, reason: Reason, says: str, write: Write
) -> None:
    rejected = only_rejected(write(GOOD, line), format_name="openai")
    assert (rejected.line, rejected.reason) == (2, reason)
    assert says in rejected.detail


def test_a_line_without_end_is_not_held_in_memory(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_files, "MAX_LINE_BYTES", 1000)
    path = write(chat(("user", "x" * 5000), ("assistant", "a")), GOOD)
    rejected = only_rejected(path, format_name="openai")
    assert (rejected.line, rejected.reason) == (1, Reason.LINE_TOO_LONG)


def test_the_rest_of_a_damaged_gzip_file_is_rejected(write: Write) -> None:
    path = write(*[chat(("user", str(n)), ("assistant", "a")) for n in range(5000)], name="a.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    items = list(read_transcripts(path, "openai"))
    assert sum(isinstance(item, Dialogue) for item in items) > 100
    last = items[-1]
    assert isinstance(last, Rejected)
    assert last.reason == Reason.DAMAGED_FILE


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"\n\n", "is empty"), (b'{"a": 1}\n', "no transcript format")],
)
def test_files_that_hold_nothing_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(TranscriptError, match=says):
        list(read_transcripts(path))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match="No such file"):
        list(read_transcripts(tmp_path / "none.jsonl"))
    with pytest.raises(TranscriptError, match="Is a directory"):
        list(read_transcripts(tmp_path))
    with pytest.raises(TranscriptError, match="choose openai, sharegpt, csv"):
        list(read_transcripts(tmp_path / "none.jsonl", "alpaca"))


def test_openai_oddities(write: Write) -> None:
    line = {
        "id": "c1",
        "messages": [
            {"role": "developer", "content": "rules"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "found"},
            {"role": "assistant", "content": " yes \n", "weight": 0},
        ],
    }
    [dialogue] = read_transcripts(write(line))
    assert isinstance(dialogue, Dialogue)
    assert [(m["role"], m["content"]) for m in dialogue.messages] == [
        ("system", "rules"),
        ("user", "a\nb"),
        ("tool", '{"name": "look", "arguments": "{}"}'),
        ("tool", "found"),
        ("assistant", "yes"),
    ]
    assert dialogue.messages[-1].get("weight") == 0
    assert not dialogue.learns
    assert dialogue.meta["id"] == "c1"


def test_indices_of_agent_turns_follow_when_an_empty_message_goes() -> None:
    value = chat(("user", ""), ("user", "hi"), ("assistant", "a"), ("assistant", " "))
    value["meta"] = {"agent_turns": [{"i": 2, "kind": "custom"}, {"i": 3, "kind": "template"}]}
    assert agent_kinds(dialogue_from(value)) == {1: "custom"}


# -- ShareGPT


SHARE = {
    "id": "s",
    "system": "Be kind.",
    "conversations": [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "42"},
        {"from": "gpt", "value": "Hello!"},
    ],
}


def test_sharegpt_lines(write: Write) -> None:
    [dialogue] = read_transcripts(write(SHARE))
    assert isinstance(dialogue, Dialogue)
    assert [m["role"] for m in dialogue.messages] == ["system", "user", "tool", "tool", "assistant"]
    assert dialogue.meta == {"id": "s"}


@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_is_read_element_by_element(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    path.write_text(
        json.dumps(
            [SHARE, {"conversations": [{"from": "alien", "value": "x"}]}, SHARE], indent=indent
        )
    )
    items = list(read_transcripts(path))
    assert [type(item) for item in items] == [Dialogue, Rejected, Dialogue]
    assert isinstance(items[1], Rejected)
    assert items[1].reason == Reason.UNKNOWN_ROLE


def test_an_array_that_breaks_off_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    path.write_text("[" + json.dumps(SHARE) + ',\n{"conversations": [')
    found = list(json_records(path))
    assert isinstance(found[0], Record)
    assert isinstance(found[1], Rejected)
    assert (found[1].line, found[1].reason) == (2, Reason.MALFORMED_JSON)


# -- tables


def test_rows_of_a_conversation_may_lie_apart_and_out_of_order(write: Write) -> None:
    path = write(
        "ticket;who;when;body",
        "A;Customer;2026-01-01T10:00:00;hi",
        'B;Customer;2026-01-01T10:00:30;"hello;\nyou"',
        "A;Clerk;2026-01-01T12:05:00+01:00;second",
        "B;Clerk;2026-01-01T10:09:00;answer",
        "A;Clerk;2026-01-01T10:01:00;first",
        name="tickets.csv",
    )
    columns = Columns("ticket", "who", "body", "when", {"customer": "user", "Clerk": "assistant"})
    first, second = read_transcripts(path, columns=columns)
    assert isinstance(first, Dialogue)
    assert isinstance(second, Dialogue)
    assert [m["content"] for m in first.messages] == ["hi", "first", "second"]
    assert [m["content"] for m in second.messages] == ["hello;\nyou", "answer"]
    assert (first.meta["id"], second.meta["id"]) == ("A", "B")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_are_found_out(separator: str, write: Write) -> None:
    rows = [("conversation_id", "role", "text"), ("1", "visitor", "hi"), ("1", "agent", "yes")]
    path = write(*(separator.join(row) for row in rows), name="t.csv.gz")
    [dialogue] = read_transcripts(path)
    assert isinstance(dialogue, Dialogue)
    assert [m["role"] for m in dialogue.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("header", "says"), [("content,note", "one"), ("content,text", "two"), ("text,content", "one")]
)
def test_content_is_read_where_there_is_no_text(header: str, says: str, write: Write) -> None:
    path = write(f"conversation_id,role,{header}", "1,agent,one,two", name="t.csv")
    [dialogue] = read_transcripts(path)
    assert isinstance(dialogue, Dialogue)
    assert [message["content"] for message in dialogue.messages] == [says]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2,alien,hi,1", Reason.UNKNOWN_ROLE),
        (",user,hi,1", Reason.BAD_ROW),
        ("2,user", Reason.BAD_ROW),
        ("2,user,hi,soon", Reason.BAD_ROW),
        (b"2,agent,\xff,1", Reason.INVALID_UTF8),
        ("2,user,hi,1", Reason.NO_AGENT_TURN),
        ("2,user," + "x" * 150_000 + ",1", Reason.BAD_ROW),
        ("2,user," + "x" * (MAX_MESSAGE_CHARS + 1) + ",1", Reason.MESSAGE_TOO_LONG),
    ],
)
def test_bad_rows(row: Any, reason: Reason, write: Write) -> None:
    path = write("conversation_id,role,text,n", "1,user,hi,1", "1,agent,a,2", row, name="t.csv")
    rejected = only_rejected(path, columns=Columns(order="n"))
    assert (rejected.line, rejected.reason) == (4, reason)


def test_missing_columns_are_named_with_those_that_are_there(write: Write) -> None:
    path = write("id,author,body", "1,user,hi", name="t.csv")
    with pytest.raises(
        TranscriptError, match=r"no column conversation_id, role, text.*id, author, body"
    ):
        list(read_transcripts(path))


# -- rejects, duplicates, splits


def test_rejects_are_written_line_by_line_and_only_if_there_are_any(tmp_path: Path) -> None:
    with Rejects(tmp_path / "r.jsonl") as rejects:
        pass
    assert not (tmp_path / "r.jsonl").exists()
    with Rejects(tmp_path / "r.jsonl") as rejects:
        rejects.add(Path("a.jsonl"), Rejected(3, Reason.BAD_ROW, "why"))
    assert rejects.counts == {"bad_row": 1}
    assert json.loads((tmp_path / "r.jsonl").read_text()) == {
        "file": "a.jsonl",
        "line": 3,
        "reason": "bad_row",
        "detail": "why",
    }


def test_duplicates() -> None:
    seen = Seen()
    first = dialogue_from(chat(("system", "x"), ("user", "Hi there!"), ("assistant", "Hello.")))
    same = dialogue_from(chat(("user", "hi  there"), ("assistant", "hello")))
    other = dialogue_from(chat(("user", "hi there"), ("assistant", "goodbye")))
    assert [seen.add(d) for d in (first, first, same, other)] == [None, "exact", "normalised", None]
    assert same in seen
    assert exact_key(first) != exact_key(same)
    assert normal_key(first) == normal_key(same)


def test_the_split_is_stable_and_near_its_share() -> None:
    items = [
        dialogue_from(chat(("user", f"question {n}"), ("assistant", "a"))) for n in range(2000)
    ]
    out = [item for item in items if held_out(item, 0.1)]
    assert 150 < len(out) < 250
    assert all(held_out(item, 0.2) for item in out)
    shouted = dialogue_from(chat(("system", "x"), ("user", "QUESTION 5!"), ("assistant", "A")))
    assert held_out(shouted, 0.5) == held_out(items[5], 0.5)


def test_sniffing(write: Write) -> None:
    assert sniff(write("junk", GOOD)) == "openai"
    assert sniff(write(SHARE)) == "sharegpt"
    assert sniff(write("a,b", name="x.TSV.gz")) == "csv"


def test_real_transcripts_are_read_whole(transcripts: Path) -> None:
    items = list(read_transcripts(transcripts / "star-val.jsonl.gz"))
    assert len(items) == 253
    assert all(isinstance(item, Dialogue) and agent_kinds(item) for item in items)
