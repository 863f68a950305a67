"""Reader of tables (CSV, TSV): one row per message, columns configurable.

Rows of a conversation may lie anywhere in the file, as ticket exports have them. They are sorted
in a temporary database on disk, so that memory stays small however large the table is.
"""

import csv
import io
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from chatbot.errors import TranscriptError
from chatbot.prompt import ChatMessage
from finetune.transcripts.files import open_bytes
from finetune.transcripts.model import (
    Dialogue,
    DialogueError,
    Reason,
    Rejected,
    make_dialogue,
    make_message,
)

DEFAULT_ROLES = {
    **dict.fromkeys(("user", "customer", "client", "visitor", "human", "end-user"), "user"),
    **dict.fromkeys(("assistant", "agent", "advisor", "support", "bot", "staff"), "assistant"),
    "system": "system",
    "tool": "tool",
}

TEXT, CONTENT = "text", "content"  # the second is read where the table has no column of the first


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns, and what the values of the role column mean (any case).

    ``order`` holds numbers or ISO 8601 times; without it the rows' order in the file counts.
    """

    conversation: str = "conversation_id"
    role: str = "role"
    text: str = TEXT
    order: str | None = None
    roles: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_ROLES))

    @property
    def needed(self) -> list[str]:
        return [self.conversation, self.role, self.text, *([self.order] if self.order else [])]


def read_table(path: Path, columns: Columns | None = None) -> Iterator[Dialogue | Rejected]:
    """Dialogues in the order in which their first rows appear; a bad row is Rejected by its
    line, and so is a conversation that has one, since its context would have a hole.

    Raises:
        TranscriptError: a column is missing; names those that are there.
    """
    chosen = columns or Columns()
    store = sqlite3.connect("")  # the empty name is a private temporary file
    try:
        store.execute("CREATE TABLE r (line INTEGER, at REAL, cid BLOB, role BLOB, text BLOB)")
        yield from _fill(path, chosen, store)
        rows = store.execute(
            "SELECT r.cid, r.line, r.role, r.text FROM r JOIN"
            " (SELECT cid, MIN(line) AS first FROM r GROUP BY cid) f ON f.cid = r.cid"
            " ORDER BY f.first, r.at, r.line"
        )
        for conversation, group in groupby(rows, key=lambda row: bytes(row[0])):
            yield _dialogue(conversation, [row[1:] for row in group], chosen)
    finally:
        store.close()


def _fill(path: Path, columns: Columns, store: sqlite3.Connection) -> Iterator[Rejected]:
    with open_bytes(path) as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=_delimiter(text.readline(), path), strict=True)
        text.seek(0)
        places = _places(next(reader), columns, path)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, EOFError, OSError) as error:
                yield Rejected(reader.line_num, Reason.BAD_ROW, str(error))
                if not isinstance(error, csv.Error):
                    return
                continue
            if any(row):
                problem = _insert(row, reader.line_num, places, columns, store)
                if problem is not None:
                    yield problem


def _delimiter(header: str, path: Path) -> str:
    if not header.strip():
        raise TranscriptError(f"{path} has no header line that names its columns")
    return max(",;\t", key=header.count)


def _places(header: list[str], columns: Columns, path: Path) -> dict[str, int]:
    found = {name.strip(): place for place, name in enumerate(header)}
    if columns.text == TEXT and TEXT not in found and CONTENT in found:
        places = {**found, TEXT: found[CONTENT]}
    else:
        places = found
    missing = [name for name in columns.needed if name not in places]
    if missing:
        raise TranscriptError(
            f"{path} has no column {', '.join(missing)}. Its columns are: {', '.join(found)}. "
            "Say which is which with --column, e.g. --column conversation=ticket_id."
        )
    return {name: places[name] for name in columns.needed}


def _insert(
    row: list[str],
    line: int,
    places: dict[str, int],
    columns: Columns,
    store: sqlite3.Connection,
) -> Rejected | None:
    if len(row) <= max(places.values()):
        return Rejected(line, Reason.BAD_ROW, f"{len(row)} fields, fewer than the header has")
    conversation = row[places[columns.conversation]].strip()
    if not conversation:
        return Rejected(line, Reason.BAD_ROW, f"column {columns.conversation} is empty")
    at = 0.0
    if columns.order:
        try:
            at = _position(row[places[columns.order]])
        except ValueError:
            detail = f"column {columns.order} is neither a number nor an ISO 8601 time"
            return Rejected(line, Reason.BAD_ROW, detail)
    values = [conversation, row[places[columns.role]].strip(), row[places[columns.text]]]
    stored = [value.encode("utf-8", "surrogateescape") for value in values]
    store.execute("INSERT INTO r VALUES (?, ?, ?, ?, ?)", (line, at, *stored))
    return None


def _position(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        moment = datetime.fromisoformat(value.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _dialogue(
    conversation: bytes, rows: list[tuple[int, bytes, bytes]], columns: Columns
) -> Dialogue | Rejected:
    """The rows of one conversation, or why they make none (by the line of the bad row)."""
    messages: list[ChatMessage] = []
    roles = {name.lower(): role for name, role in columns.roles.items()}
    first = line = rows[0][0]
    try:
        name = conversation.decode()
        for row_line, raw_role, raw_text in rows:
            line = row_line
            said_by = raw_role.decode()
            role = roles.get(said_by.lower(), said_by)
            messages.append(
                make_message(role, raw_text.decode(), None, f"conversation {name[:60]}")
            )
        return make_dialogue(messages, {"id": name}, first)
    except UnicodeDecodeError as error:
        return Rejected(line, Reason.INVALID_UTF8, f"byte {error.start + 1}: {error.reason}")
    except DialogueError as error:
        return Rejected(line, error.reason, error.detail)
